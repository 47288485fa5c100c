from __future__ import annotations

import signal

import pytest

from modelzip_cli.running.signals import interruptible

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(Exception):
    """What handlers from outside do."""


@pytest.fixture(autouse=True)
def _handlers_raise():
    def stop(number, frame):
        raise Stop

    before = {number: signal.signal(number, stop) for number in STOPPING}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_told_and_the_second_is_as_before(number, _handlers_raise):
    with interruptible() as signalled:
        assert signalled() is None
        signal.raise_signal(number)
        assert signalled() == number
        with pytest.raises(Stop):
            signal.raise_signal(signal.SIGTERM)
        assert signalled() == number


def test_handlers_are_put_back_also_after_an_error(_handlers_raise):
    with pytest.raises(KeyError), interruptible():
        raise KeyError
    assert all(signal.getsignal(number) is _handlers_raise for number in STOPPING)


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with interruptible() as signalled:
        signal.raise_signal(signal.SIGHUP)
        assert signalled() is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
