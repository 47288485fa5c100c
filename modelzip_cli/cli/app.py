"""The program: commands by name, errors to exit codes, signals, standard streams."""

from __future__ import annotations

import errno
import os
import signal
import sys
from itertools import pairwise
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from modelzip_cli import __version__
from modelzip_cli.cli.compress import compress
from modelzip_cli.cli.diff import diff
from modelzip_cli.cli.distill import distill
from modelzip_cli.cli.eval import eval_
from modelzip_cli.cli.inspect import inspect
from modelzip_cli.cli.prune import prune
from modelzip_cli.cli.quantize import quantize
from modelzip_cli.cli.restore import restore
from modelzip_cli.cli.schemes import schemes
from modelzip_cli.cli.show import to_null
from modelzip_cli.cli.verify import verify
from modelzip_cli.containers.atomic import remove_live
from modelzip_cli.errors import ModelzipError, Stopped, inert

app = typer.Typer(
    rich_markup_mode=None,  # with markup and completion, --help takes twice as long
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (inspect, quantize, prune, distill, compress, restore, diff, verify, eval_, schemes):
    app.command(command.__name__.rstrip("_"))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modelzip {__version__}")
        raise typer.Exit


@app.callback()
def modelzip(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make saved model checkpoints smaller, and say what it cost."""


def main() -> NoReturn:
    """Run the program and exit with a documented code (docs/exit-codes.md)."""
    _secure_streams()
    _install_signals()
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _stdout_failed(error) or code
    try:
        sys.stderr.flush()
    except OSError:
        to_null(2)
    os._exit(code)  # all is flushed and closed; taking the interpreter apart with numba in it takes 0.1 s and more


def _run(arguments: list[str]) -> int:
    try:
        app(arguments, standalone_mode=False)
    except ModelzipError as error:
        return _fail(arguments, str(error), error.exit_code, error.kind, error)
    except Stopped as stopped:
        remove_live()  # the signal may have come before anybody was there to clean up
        _say(f"stopped by {signal.Signals(stopped.exit_code - 128).name}; outputs that were not finished are gone")
        return stopped.exit_code
    except TyperException as error:
        code = int(getattr(error, "exit_code", 2))
        message = str(error.format_message() if hasattr(error, "format_message") else error)
        if not arguments or code == 0:  # no arguments: the message is the help
            print(message)
            return code
        name = arguments[0] if not arguments[0].startswith("-") else ""
        hint = (
            f"modelzip {name} --help"
            if name in {command.name for command in app.registered_commands}
            else "modelzip --help"
        )
        return _fail(arguments, f"{inert(message)} (see `{hint}`)", code, "usage-error", error)
    except BrokenPipeError as error:
        return _stdout_failed(error)
    except SystemExit:  # how typer ends, and only then, when it sees that the reader of standard output went away
        to_null(1)
        return 0
    except OSError as error:
        return _fail(
            arguments,
            f"{inert(str(error.filename or 'standard output'))}: {error.strerror or error}",
            1,
            "os-error",
            error,
        )
    except MemoryError as error:
        return _fail(arguments, "out of memory; try fewer --jobs", 1, "out-of-memory", error)
    except Exception as error:  # the one broad net: a mistake of ours must not look like advice
        what = f"{type(error).__name__}: {inert(str(error), longest=200)}"
        return _fail(arguments, f"this is a bug in modelzip: {what} (--debug shows where)", 1, "bug", error)
    return 0


def _fail(arguments: list[str], message: str, code: int, kind: str, error: BaseException) -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    _say(f"error: {message}")
    if _asks_for_json(arguments) and not getattr(error, "reported", False):
        import json

        shown = {"kind": kind, "message": message, "path": _path_of(arguments), "exit_code": code}
        try:
            print(json.dumps({"schema_version": 1, "error": shown}))
        except OSError as failed:
            return _stdout_failed(failed) or code
    return code


def _asks_for_json(arguments: list[str]) -> bool:
    joined = " ".join(arguments).replace("--format=", "--format ")
    return "--json" in arguments or "--format json" in joined


def _path_of(arguments: list[str]) -> str | None:
    """The input that an error is about: the first argument that is neither command, option nor value of an option."""
    commands = typer.main.get_command(app)
    known = getattr(commands, "commands", {}).get(arguments[0])
    taking_value = {
        name
        for option in (known.params if known else ())
        if not getattr(option, "is_flag", True)
        for name in option.opts
    }
    for before, argument in pairwise(arguments):
        if not argument.startswith("-") and before not in taking_value:
            return inert(argument)
    return None


def _say(message: str) -> None:
    try:
        print(f"modelzip: {message}", file=sys.stderr)
    except OSError:
        to_null(2)


def _stdout_failed(error: OSError) -> int:
    """A reader that went away (`| head`) is no error; a full disk is. Either way nothing more can be written."""
    to_null(1)
    if error.errno == errno.EPIPE:
        return 0
    _say(f"error: cannot write to standard output: {error.strerror}")
    return 1


def _secure_streams() -> None:
    """Streams that the caller closed are opened on /dev/null: no file of ours may become descriptor 0, 1 or 2."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _install_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the run; a second one ends it at once."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(other) is not signal.SIG_IGN:
            signal.signal(other, _stop_now)
    raise Stopped(number)


def _stop_now(number: int, frame: FrameType | None) -> None:
    remove_live()
    os._exit(128 + number)
