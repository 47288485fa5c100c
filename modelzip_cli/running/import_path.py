"""Objects of the user's own code, by import path: `package.module:name`, or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import ModelzipError, UsageError, UserCodeFailed, did_you_mean, inert

IMPORT_PATH = re.compile(r"(?:(?P<file>.+\.py)|(?P<module>[^\W\d]\w*(?:\.\w+)*)):(?P<name>[^\W\d]\w*)")


def is_import_path(text: str) -> bool:
    """Whether `text` is `module:name` or `file.py:name`."""
    return IMPORT_PATH.fullmatch(text) is not None


def import_object(path: str) -> Any:
    """The object that an import path names. Its module is run, which is what the user asks for by naming it.

    Modules are looked for in the working directory, too, and those that a file imports beside the file. Raises
    FileNotThere and UsageError, which name what is nearest, and UserCodeFailed for what the module raises.
    """
    found = IMPORT_PATH.fullmatch(path)
    if found is None:
        raise UsageError(f"{inert(path)}: not an import path: module:name or file.py:name")
    file, module, name = found["file"], found["module"], found["name"]
    try:
        imported = _import_file(Path(file)) if file else _import_module(module)
    except ModelzipError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(path, error) from error
    if not hasattr(imported, name):
        names = [known for known in dir(imported) if not known.startswith("_")]
        raise UsageError(f"{inert(path)}: {inert(file or module)} has no {name}{did_you_mean(name, names)}")
    return getattr(imported, name)


def failed(path: str, error: BaseException) -> UserCodeFailed:
    """The error of a user's code, in a line."""
    if isinstance(error, SystemExit):
        return UserCodeFailed(
            f"{inert(path)}: ends the program (sys.exit, or arguments that it reads itself): put what it does as a "
            "program under if __name__ == '__main__':"
        )
    reason = inert(str(error).strip().split("\n")[0], longest=200)
    return UserCodeFailed(f"{inert(path)}: {type(error).__name__}: {reason}; --debug shows where")


def _import_file(path: Path) -> ModuleType:
    SourceFile(path).close()  # a missing one names what is nearest
    name = f"modelzip_user_code_{path.stem}"  # its own name may be that of another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{inert(str(path))}: Python does not import this file")
    _look_in(path.absolute().parent)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _import_module(module: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise UsageError(f"{inert(module)}: no module {error.name} here or installed") from None


def _look_in(folder: Path) -> None:
    """Let Python import from `folder`, too."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
