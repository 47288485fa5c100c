"""Resume points: all that a run needs to go on as if it had not been stopped, in one safetensors file.

Weights, the best weights yet, the optimizer's moments, the state of torch's random numbers, counters and history; and a
fingerprint of what the run was asked for, so that it does not go on as another one. No pickle, no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from modelzip_cli.containers.atomic import write_bytes
from modelzip_cli.errors import BrokenCheckpoint, FileNotThere, UsageError, inert
from modelzip_cli.running.training import State, Trainer

KEY = "modelzip.resume"
MODEL, BEST, MOMENTS, RANDOM, MAPS = "model.", "best.", "moment.", "random", "map."
COUNTERS = ("step", "best_step", "peak", "without_gain", "elapsed", "history")


@dataclass(frozen=True)
class Point:
    """A resume point as it was read. `fingerprint`: what the run was asked for; `told`: its counters."""

    path: Path
    fingerprint: Mapping[str, Any]
    told: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def resume_path(output: Path) -> Path:
    """Where the resume point of a run lies: beside its output."""
    return output.with_name(f"{output.name}.resume")


def save_point(path: Path, trainer: Trainer, fingerprint: Mapping[str, Any]) -> None:
    """Write where `trainer` is; the file appears whole or stays as it was. Raises CannotWrite."""
    state = trainer.state
    tensors = {MODEL + name: tensor for name, tensor in trainer.student.module.state_dict().items()}
    tensors |= {BEST + name: tensor for name, tensor in state.best.items()}
    tensors |= {f"{MAPS}{place}": tensor.detach() for place, tensor in enumerate(trainer.maps)}
    for place, held in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"{MOMENTS}{place}.{name}": tensor for name, tensor in held.items()}
    tensors[RANDOM] = torch.get_rng_state()
    told = {name: getattr(state, name) for name in COUNTERS}
    metadata = {KEY: json.dumps({"fingerprint": dict(fingerprint), "state": told})}
    data = to_safetensors({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata)
    write_bytes(path, data, replace=True)


def read_point(path: Path) -> Point:
    """Read the resume point at `path`. Raises FileNotThere without one, BrokenCheckpoint for a damaged file."""
    shown = inert(str(path))
    if not path.is_file():
        raise FileNotThere(f"{shown}: there is no resume point; run without --resume")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Point(path, dict(told["fingerprint"]), dict(told["state"]), tensors)
    except Exception as error:
        raise BrokenCheckpoint(f"{shown}: is no resume point, or a damaged one: run without --resume") from error


def restore(trainer: Trainer, point: Point, fingerprint: Mapping[str, Any]) -> None:
    """Let `trainer` go on from `point`.

    Raises UsageError where the run that it is of was another, naming what differs, BrokenCheckpoint for a damaged file.
    """
    shown = inert(str(point.path))
    for name, ours in fingerprint.items():
        theirs = point.fingerprint.get(name)
        if theirs != json.loads(json.dumps(ours)):
            raise UsageError(
                f"{shown}: is of another run: {name} was {inert(str(theirs), longest=120)}, now it is "
                f"{inert(str(ours), longest=120)}; give the same options, or run without --resume"
            )
    try:
        _restore(trainer, point.tensors, point.told)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BrokenCheckpoint(f"{shown}: a damaged resume point: run without --resume") from error


def _restore(trainer: Trainer, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    best = _named(tensors, BEST)
    for weights in (best, _named(tensors, MODEL)):  # the best only to see that they fit
        trainer.student.module.load_state_dict(weights)
    with torch.no_grad():
        for number, parameter in enumerate(trainer.maps):
            parameter.copy_(tensors[f"{MAPS}{number}"])
    held: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _named(tensors, MOMENTS).items():
        place, _, moment = name.partition(".")
        held.setdefault(int(place), {})[moment] = tensor
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": held})
    torch.set_rng_state(tensors[RANDOM])
    trainer.state = State(**{name: told[name] for name in COUNTERS}, best=best)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
