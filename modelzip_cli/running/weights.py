"""Weights from a file into a network: the names and shapes have to be those that the network has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from modelzip_cli.errors import WrongArchitecture, inert

COUNTERS = "num_batches_tracked"  # of BatchNorm: a checkpoint may lack them, and nothing is computed from them
SHOWN = 3


Kept = TypeVar("Kept")


class Mismatch(NamedTuple):
    """How names and shapes of a file differ from those of a network."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, in the file, in the network


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    label: str,
    network: str,
    *,
    takes_arguments: bool = False,
) -> None:
    """Copy `tensors` into `module`, whose dtypes stay. Raises WrongArchitecture that says what does not match.

    A prefix that all names have (`module.`, `model.`) is taken off, or one that the network has put before those that
    it makes fit. A name that the network ties to another may be missing, a buffer that it computes itself may be there.
    `takes_arguments`: whether --arch-args change the network, for the advice in the message.
    """
    names = module.state_dict()
    renamed = _renamed(tensors, names)
    found = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    wanted = {name: found.get(name, ()) if is_lazy(tensor) else tuple(tensor.shape) for name, tensor in names.items()}
    ties = _ties(module)
    spared = {name for name, _ in module.named_buffers()}.difference(wanted)
    spared |= {name for names in ties if any(other in found for other in names) for name in names}
    mismatch = compare(found, wanted, spared)
    if any(mismatch):
        raise does_not_fit(mismatch, found, wanted, label, network, takes_arguments=takes_arguments)
    _check_ties(ties, renamed, label, network)
    module.load_state_dict(renamed, strict=False)


def file_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What the tensors of `module` are called in the checkpoint of these `names` that it was loaded from."""
    return _renamed({name: name for name in names}, module.state_dict())


def compare(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()
) -> Mismatch:
    """Hold the shapes of a file against those of a network."""
    spared = {*optional, *(name for name in wanted if name.endswith(COUNTERS))}
    return Mismatch(
        tuple(name for name in wanted if name not in found and name not in spared),
        tuple(name for name in found if name not in wanted and name not in spared),
        tuple((name, found[name], shape) for name, shape in wanted.items() if found.get(name, shape) != shape),
    )


def _ties(module: nn.Module) -> list[list[str]]:
    """Names of the network that share one tensor."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _check_ties(ties: Iterable[Sequence[str]], tensors: Mapping[str, Tensor], label: str, network: str) -> None:
    """Raise WrongArchitecture where the file has two tensors for what is one in the network."""
    for names in ties:
        first, *others = [name for name in names if name in tensors] or [""]
        for other in others:
            one, two = tensors[first], tensors[other]
            if not (one.is_meta or one.data_ptr() == two.data_ptr() or torch.equal(one, two)):
                raise WrongArchitecture(
                    f"{label}: does not fit {network}, where {inert(first)} and {inert(other)} are one tensor: in the "
                    "file they differ"
                )


def _renamed(tensors: Mapping[str, Kept], wanted: Mapping[str, object]) -> dict[str, Kept]:
    """The tensors without the prefix, or with the one, that makes most of their names fit."""
    candidates = [dict(tensors)]
    stripped = dict(tensors)
    while stripped:
        prefix = next(iter(stripped)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in stripped):
            break
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
        candidates.append(stripped)
    for prefix in dict.fromkeys(name.partition(".")[0] + "." for name in wanted):
        longer = {prefix + name if prefix + name in wanted else name: tensor for name, tensor in tensors.items()}
        candidates += [longer] if len(longer) == len(tensors) else []
    return max(candidates, key=lambda names: len(names.keys() & wanted.keys()))  # the first of equals: as they are


def does_not_fit(
    mismatch: Mismatch,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    label: str,
    network: str,
    *,
    takes_arguments: bool = False,
) -> WrongArchitecture:
    """The error that says how the shapes of a file differ from those of a network, and why that may be."""
    shown = [f"{name} is {[*ours]}, not {[*theirs]}" for name, ours, theirs in mismatch.misshapen]
    kinds = (("missing", mismatch.missing), ("unexpected", mismatch.unexpected), ("of another shape", shown))
    parts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names]
    reason = _reason(mismatch, found, wanted, takes_arguments)
    return WrongArchitecture(f"{label}: does not fit {network}: {'; '.join(parts)}. {reason}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(inert(name, longest=100) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _reason(
    mismatch: Mismatch,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    takes_arguments: bool,
) -> str:
    """What is likely wrong, and what to try."""
    if not found.keys() & wanted.keys():
        return "No name is common: these are the weights of another network"
    if mismatch.missing and mismatch.unexpected:
        return "Likely another version or variant of the network"
    if not mismatch.missing and not mismatch.unexpected:
        outputs = _other_outputs(mismatch, [name for name in wanted if name in found][-1])
        if outputs is None:
            return "Likely another width" + (", which --arch-args can set" if takes_arguments else "")
        advice = f": give that number, as in --arch-args '{{\"num_classes\": {outputs}}}'" if takes_arguments else ""
        return f"The file has {outputs} outputs{advice}"
    what = "fewer" if mismatch.missing else "more"
    return f"Likely the file has {what} layers or parts" + (
        ", which --arch-args may set" if takes_arguments else " than the network"
    )


def _other_outputs(mismatch: Mismatch, last: str) -> int | None:
    """The number of outputs that the file has, where nothing but that of the layer of the name `last` differs."""
    layer = last.rpartition(".")[0]
    if all(name.rpartition(".")[0] == layer and ours[1:] == theirs[1:] for name, ours, theirs in mismatch.misshapen):
        return mismatch.misshapen[0][1][0]
    return None
