"""`--arch`: the network that a person names, from an import path or a Python file of their own.

This runs the code that the user points at, as `python file.py` would. Nothing that stands in a checkpoint is ever
taken for such a name.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modelzip_cli.errors import UsageError, UserCodeFailed, inert
from modelzip_cli.running.import_path import failed, import_object, is_import_path

FORMS = "write file.py:Net, package.module:factory, an exported .pt2, or a Hugging Face directory"


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


def build(arch: str, arguments: Mapping[str, Any], *, check: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """Call what `arch` names with `arguments`; it must give a module.

    `check` is given a sketch first, a network without memory for its weights, to look at names and shapes; not where
    the code does not allow one. Raises UsageError where nothing of the kind is named, UserCodeFailed for what the code
    raises.
    """
    factory = _factory(arch)
    if isinstance(factory, nn.Module):
        if arguments:
            raise UsageError(f"{inert(arch)}: is a network already and takes no --arch-args")
        return copy.deepcopy(factory)  # a reference with other weights may be made of it, too
    if not callable(factory):
        raise UsageError(f"{inert(arch)}: is no class or function that makes a network")
    if check is not None and (sketch := _sketch(factory, arguments, arch)) is not None:
        check(sketch)
    module = _call(factory, arguments, arch)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{inert(arch)}: gave a {type(module).__name__}, not a torch module")
    return module


def _sketch(factory: Callable[..., Any], arguments: Mapping[str, Any], arch: str) -> nn.Module | None:
    if not isinstance(factory, type) or not issubclass(factory, nn.Module):
        return None  # what a function does besides is done once
    try:
        with torch.device("meta"):
            return _call(factory, arguments, arch)  # type: ignore[no-any-return]
    except UserCodeFailed:
        return None


def _factory(arch: str) -> Any:
    if not is_import_path(arch):
        raise UsageError(f"{inert(arch)}: names no network; {FORMS}")
    return import_object(arch)


def _call(factory: Callable[..., Any], arguments: Mapping[str, Any], arch: str) -> Any:
    """Call a user's function. Raises UsageError for arguments that it does not take."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        signature = inert(str(inspect.signature(factory)), longest=300)
        what = f"{inert(arch)}: {inert(str(error))}; it takes {signature}"
        raise UsageError(f"{what}: give them in --arch-args, as '{{\"width\": 64}}'") from None
    except ValueError:  # a built-in without a signature
        pass
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:
        raise failed(arch, error) from error


def describe(error: BaseException) -> str:
    """Kind and first line of an error that is not ours."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {inert(first, longest=300)}"
