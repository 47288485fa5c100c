"""Resume points: all that a run needs to go on as if it had not been stopped, in one safetensors file.

Weights, the best weights yet, the optimizer's moments, the state of torch's random numbers, counters and history; and a
fingerprint of what the run was asked for, so that it does not go on as another one. No pickle, no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def resume_path(output: Path) -> Path:
    """Where the resume point of a run lies: beside its output."""
    return output.with_name(f"{output.name}.resume")


def save_point(path: Path, trainer: Trainer, fingerprint: Mapping[str, Any]) -> None:
    """Write where `trainer` is; the file appears whole or stays as it was. Raises CannotWrite."""
    state = trainer.state
    tensors = {MODEL + name: tensor for name, tensor in trainer.student.module.state_dict().items()}
    tensors |= {BEST + name: tensor for name, tensor in state.best.items()}
    tensors |= {f"{MAPS}{place}": tensor.detach() for place, tensor in enumerate(trainer.maps)}
    moments = trainer.optimizer.state_dict()["state"]
    for place, held in moments.items():
        tensors |= {f"{MOMENTS}{place}.{name}": tensor for name, tensor in held.items()}
    tensors[RANDOM] = torch.get_rng_state()
    told = {name: getattr(state, name) for name in COUNTERS}
    metadata = {KEY: json.dumps({"fingerprint": dict(fingerprint), "state": told})}
    data = to_safetensors({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata)
    write_bytes(path, data, replace=True)


def load_point(path: Path, trainer: Trainer, fingerprint: Mapping[str, Any]) -> None:
    """Let `trainer` go on from the point at `path`.

    Raises FileNotThere without one, UsageError where the run it is of was another, naming what differs,
    BrokenCheckpoint for a damaged file.
    """
    shown = inert(str(path))
    if not path.is_file():
        raise FileNotThere(f"{shown}: there is no resume point; run without --resume")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs, state = told["fingerprint"], told["state"]
    except Exception as error:
        raise BrokenCheckpoint(f"{shown}: is no resume point, or a damaged one: run without --resume") from error
    for name, ours in fingerprint.items():
        if theirs.get(name) != json.loads(json.dumps(ours)):
            raise UsageError(
                f"{shown}: is of another run: {name} was {inert(str(theirs.get(name)), longest=120)}, now it is "
                f"{inert(str(ours), longest=120)}; give the same options, or run without --resume"
            )
    try:
        _restore(trainer, tensors, state)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BrokenCheckpoint(f"{shown}: a damaged resume point: run without --resume") from error


def _restore(trainer: Trainer, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    trainer.student.module.load_state_dict(_named(tensors, MODEL))
    with torch.no_grad():
        for number, parameter in enumerate(trainer.maps):
            parameter.copy_(tensors[f"{MAPS}{number}"])
    held: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _named(tensors, MOMENTS).items():
        place, _, moment = name.partition(".")
        held.setdefault(int(place), {})[moment] = tensor
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": held})
    torch.set_rng_state(tensors[RANDOM])
    trainer.state = State(**{name: told[name] for name in COUNTERS}, best=_named(tensors, BEST))


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
