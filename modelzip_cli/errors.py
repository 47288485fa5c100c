"""What can go wrong for a user: one class a mistake, each with its exit code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class ModelzipError(Exception):
    """The run failed. `str(error)` names the file or tensor, says what is wrong and what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported  # a report on stdout tells the whole story already: no second JSON object

    @property
    def kind(self) -> str:
        """A stable name for scripts: the class name in kebab-case, such as `no-tensor-matches`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()


class BrokenCheckpoint(ModelzipError):
    """A file is truncated, corrupt, or says two different things about itself."""


class UnsupportedCheckpoint(ModelzipError):
    """A file is whole, but of a kind that this version does not read; the message names the kind."""


class SourceChanged(ModelzipError):
    """The source was changed or cut by another program while it was read."""


class NonFinite(ModelzipError):
    """A tensor holds NaN or infinity, which no scheme can store."""


class DoesNotFit(ModelzipError):
    """A tensor holds a magnitude that the scheme's number format cannot represent."""


class ModelDoesNotRun(ModelzipError):
    """A model cannot be built or run: its code fails, its input has another shape, its output is no score."""


class BadData(ModelzipError):
    """Data cannot be read, or does not fit the model: a picture is damaged, a label out of range, a class alone."""


class UserCodeFailed(ModelzipError):
    """Code that the user named (--arch, --data) raised an error; --debug shows where."""


class MissingExtra(ModelzipError):
    """What was asked for needs a library that is not installed; the message names the extra that brings it."""


class CannotWrite(ModelzipError):
    """The output could not be written: no space, no permission, a failing disk."""


class UsageError(ModelzipError):
    """The arguments do not fit each other or the file; nothing was read or written."""

    exit_code = 2


class BadOption(UsageError):
    """An option of a scheme or a command has a value outside its range."""


class UnknownScheme(UsageError):
    """A scheme name is not in the table."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no scheme {name!r}{did_you_mean(name, known)}; `modelzip schemes` lists them")


class NoModel(UsageError):
    """A file holds weights, but not the network that uses them."""


class WrongArchitecture(UsageError):
    """The network and the weights do not belong together."""


class NoTensorMatches(UsageError):
    """A pattern on the command line or in a recipe selects nothing."""

    def __init__(self, source: str, option: str, pattern: str, names: Iterable[str]) -> None:
        closest = get_close_matches(pattern, list(names), n=1, cutoff=0)
        hint = f"the closest name is {closest[0]!r}" if closest else "the checkpoint is empty"
        super().__init__(f"{source}: {option} {pattern!r} matches no tensor; {hint}")


class OutputExists(UsageError):
    """The output is there already and neither --force nor --skip-existing was given."""


class OutputIsSource(UsageError):
    """The output is one of the inputs, under this or another name."""


class FileNotThere(UsageError):
    """A path on the command line does not exist."""


class Unreachable(ModelzipError):
    """A goal cannot be met; the message says the nearest that can."""

    exit_code = 3


class GateFailed(ModelzipError):
    """A gate (--fail-under, --max-size) was not met; no output is left behind."""

    exit_code = 4


class UnsafeInput(ModelzipError):
    """The weights of the file can only be had by running code from it, which modelzip never does."""

    exit_code = 5


class BatchFailed(ModelzipError):
    """Some files of a batch failed; the others are done."""

    exit_code = 6


class Bug(ModelzipError):
    """A mistake of modelzip itself; --debug shows where."""


class Stopped(BaseException):
    """A signal asked the run to stop. Not an Exception: no `except Exception` may swallow it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'int4'?` for the closest of `known`, or nothing when none is close."""
    closest = get_close_matches(word, list(known), n=1)
    return f"; did you mean {closest[0]!r}?" if closest else ""


_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def inert(text: str, *, longest: int | None = None) -> str:
    """Return `text` safe for a terminal, a log line or a table: no control, bidi or surrogate character left as it is.

    `longest` caps the length in characters, for tables; None keeps all.
    """
    if text.isascii() and text.isprintable():  # nearly always
        return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
    shown = "".join(c if c.isprintable() and c not in _BIDI else repr(c)[1:-1].replace("'", "") for c in text)
    shown = "".join(f"\\u{ord(c):04x}" if c in _BIDI else c for c in shown)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"
