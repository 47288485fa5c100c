"""`--arch`: the network that a person names, from an import path or a Python file of their own.

This runs the code that the user points at, as `python file.py` would. Nothing that stands in a checkpoint is ever
taken for such a name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from modelzip_cli.errors import FileNotThere, ModelDoesNotRun, UsageError, did_you_mean, inert

FORMS = "write --arch file.py:Net, --arch package.module:factory, an exported .pt2, or a Hugging Face directory"


def parse_arch_args(text: str | None) -> dict[str, Any]:
    """Read --arch-args, a JSON object. Raises UsageError."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UsageError(f"--arch-args {inert(text)!r}: write a JSON object, such as '{{\"width\": 64}}'")
    return values


def build(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call what `arch` names with `arguments`; it must give a module. Its prints go to standard error."""
    factory = resolve(arch, "--arch")
    shown = inert(arch)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(f"--arch {shown}: is no class or function")
    module = call(factory, arguments, f"--arch {shown}")
    if not isinstance(module, nn.Module):
        raise UsageError(f"--arch {shown}: gave a {type(module).__name__}, not a torch module")
    return module


def build_on_meta(arch: str, arguments: Mapping[str, Any]) -> nn.Module | None:
    """The same without memory for weights, for a look at names and shapes; None where the code does not allow it."""
    factory = resolve(arch, "--arch")
    if not isinstance(factory, type) or not issubclass(factory, nn.Module):
        return None  # what a function does besides is done once
    try:
        with torch.device("meta"):
            built = call(factory, arguments, "")
    except ModelDoesNotRun:
        return None
    return built if isinstance(built, nn.Module) else None


def call(factory: Callable[..., Any], arguments: Mapping[str, Any], shown: str) -> Any:
    """Call a user's function. Raises UsageError for arguments that it does not take, ModelDoesNotRun where it fails."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        signature = inert(str(inspect.signature(factory)), longest=300)
        raise UsageError(f"{shown}: {inert(str(error))}; it takes {signature}: give them in --arch-args") from None
    except ValueError:  # a built-in without a signature
        pass
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return factory(**arguments)
    except Exception as error:
        raise ModelDoesNotRun(f"{shown}: building it failed: {describe(error)}") from error


def resolve(name: str, option: str) -> Any:
    """The attribute that `file.py:NAME` or `package.module:NAME` names. Raises UsageError that says what is missing."""
    place, separator, attribute = name.rpartition(":")
    if not separator or not place or not attribute:
        raise UsageError(f"{option} {inert(name)}: names no network; {FORMS}")
    module = _from_file(Path(place), option) if place.endswith(".py") else _from_package(place, option)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise UsageError(
                f"{option} {inert(name)}: {inert(place)} has no {inert(part)!r}{did_you_mean(part, known)}"
            )
        found = getattr(found, part)
    return found


def _from_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise FileNotThere(f"{option}: {inert(str(path))} does not exist")
    path = path.absolute()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known is None:  # so that its classes can be pickled, dataclasses among them
        sys.modules[path.stem] = module
    if str(path.parent) not in sys.path:  # as for a script: what lies beside it can be imported
        sys.path.insert(0, str(path.parent))
    with _failures_of(path.name, option):
        spec.loader.exec_module(module)
    return module


def _from_package(name: str, option: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for `python -m`
    with _failures_of(name, option):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            what = "is not installed" if "." not in missing else "does not exist"
            raise UsageError(f"{option} {inert(name)}: the module {inert(missing)} {what}") from None


@contextlib.contextmanager
def _failures_of(name: str, option: str) -> Any:
    """Failures of a user's code as one line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except Exception as error:
        raise ModelDoesNotRun(f"{option} {inert(name)}: importing it failed: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Kind and first line of an error that is not ours."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {inert(first, longest=300)}"
