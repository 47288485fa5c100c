"""Weights from a file into a network: the names and shapes have to be those that the network has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from modelzip_cli.errors import WrongArchitecture, inert

COUNTERS = "num_batches_tracked"  # of BatchNorm: a checkpoint may lack them, and nothing is computed from them
SHOWN = 3


class Mismatch(NamedTuple):
    """How names and shapes of a file differ from those of a network."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, in the file, in the network


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], label: str, network: str, *, ignored: Sequence[str] = ()
) -> None:
    """Copy `tensors` into `module`, whose dtypes stay. Raises WrongArchitecture that says what does not match.

    A prefix that all names have (`module.`, `model.`) is taken off or put before where that makes them fit. A name that
    the network ties to another may be missing, and what one of the regular expressions `ignored` finds in it.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    renamed = _renamed(tensors, wanted)
    found = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    spared = {name for name in (*found, *wanted) if any(re.search(pattern, name) for pattern in ignored)}
    mismatch = compare(found, wanted, _tied_names(module, found) | spared)
    if any(mismatch):
        raise WrongArchitecture(_message(mismatch, found, wanted, label, network))
    module.load_state_dict(renamed, strict=False)


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


def _tied_names(module: nn.Module, found: Mapping[str, object]) -> set[str]:
    """Names of the network that share their memory with a name of the file."""
    by_place: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        by_place.setdefault(id(tensor), []).append(name)
    return {name for names in by_place.values() if any(other in found for other in names) for name in names}


def _renamed(tensors: Mapping[str, Tensor], wanted: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors without the prefix, or with the one, that makes most of their names fit."""
    candidates = [dict(tensors)]
    stripped = dict(tensors)
    while stripped:
        prefix = next(iter(stripped)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in stripped):
            break
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
        candidates.append(stripped)
    prefix = next(iter(wanted), "").partition(".")[0] + "."
    if all(name.startswith(prefix) for name in wanted):
        candidates.append({prefix + name: tensor for name, tensor in tensors.items()})
    return max(candidates, key=lambda names: len(names.keys() & wanted.keys()))  # the first of equals: as they are


def _message(
    mismatch: Mismatch,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    label: str,
    network: str,
) -> str:
    parts = []
    if mismatch.missing:
        parts.append(f"{len(mismatch.missing)} tensors are missing: {_listed(mismatch.missing)}")
    if mismatch.unexpected:
        parts.append(f"{len(mismatch.unexpected)} are unexpected: {_listed(mismatch.unexpected)}")
    if mismatch.misshapen:
        shown = [f"{name} is {[*ours]}, not {[*theirs]}" for name, ours, theirs in mismatch.misshapen]
        parts.append(f"{len(mismatch.misshapen)} have another shape: {_listed(shown)}")
    return f"{label}: does not fit {network}: {'; '.join(parts)}. {_reason(mismatch, found, wanted)}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(inert(name, longest=100) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _reason(mismatch: Mismatch, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What is likely wrong, and what to try."""
    common = found.keys() & wanted.keys()
    if not common:
        return "No name is common: these are the weights of another network"
    if not mismatch.missing and not mismatch.unexpected:
        last = max((place for place, name in enumerate(wanted) if name in found), default=0)
        layer = [*wanted][last].rpartition(".")[0]
        if all(
            name.rpartition(".")[0] == layer and ours[1:] == theirs[1:] for name, ours, theirs in mismatch.misshapen
        ):
            outputs = mismatch.misshapen[0][1][0]
            return (
                f"The file has {outputs} outputs: give that number, as in --arch-args '{{\"num_classes\": {outputs}}}'"
            )
        return "Likely another width: give the numbers that the network was trained with in --arch-args"
    if mismatch.missing and mismatch.unexpected:
        return "Likely another version or variant of the network"
    more, fewer = ("fewer", "more") if mismatch.missing else ("more", "fewer")
    return f"Likely the file has {more} layers, or the network {fewer} options, than --arch-args says"
