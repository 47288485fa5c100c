from __future__ import annotations

import io
import sys

import pytest

from modelzip_cli.cli.progress import training_progress
from modelzip_cli.running.training import State
from tests.teaching import lesson

LAST = {"step": 300.0, "loss": 0.25, "agreement": 0.875, "kl": 0.125}


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def report(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, shown: bool) -> str:
    """What a run writes that says what it does and is evaluated once, after some minutes."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "160")
    with training_progress(shown=shown) as (say, step):
        say("making the student")
        step(State(step=300, elapsed=150.0, history=[LAST]), lesson(steps=1200))
    return stream.getvalue()


def test_a_log_gets_a_line_an_evaluation(monkeypatch):
    written = report(io.StringIO(), monkeypatch, shown=True)
    assert written == "step 300 of 1,200  loss 0.25  agreement 87.50%  KL 0.1250  2.0 steps/s\n"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    written = report(Terminal(), monkeypatch, shown=True)
    assert "step 300 of 1,200" in written
    assert "25 %" in written
    assert written.endswith("\x1b[2K")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_shown_on_demand(monkeypatch, stream):
    assert report(stream(), monkeypatch, shown=False) == ""
