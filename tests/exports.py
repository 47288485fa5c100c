"""Exported models as torch writes them, and the same archives with entries changed."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.hostile.makers import Member, zip_of

ROOT = "archive/"
PROGRAM = "models/model.json"


def exported(
    module: nn.Module, *example: Tensor, axes: Mapping[int, Any] | None = None, decompose: bool = False
) -> bytes:
    """What torch.export.save writes; `axes` of every input are dynamic, by default the batch."""
    shapes = tuple(dict({0: Dim.AUTO} if axes is None else axes) for _ in example)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        torch.export.save(program.run_decompositions() if decompose else program, buffer)
    return buffer.getvalue()


class Small(nn.Module):
    """One layer, with a size in its graph that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(x.shape[0] * 2, 4))


@cache
def small() -> bytes:
    """A small exported model: inputs [batch, 8], outputs [2 * batch, 3]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return exported(Small().eval(), torch.ones(2, 8))


def entries(archive: bytes) -> dict[str, bytes]:
    """The entries of an archive by name, without its outermost folder."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name.removeprefix(ROOT): file.read(name) for name in file.namelist()}


def archive_of(content: Mapping[str, bytes]) -> bytes:
    """An archive of these entries, checksums and all."""
    return zip_of([Member(ROOT + name, data) for name, data in content.items()])


def changed(archive: bytes, **changes: Callable[[Any], Any]) -> bytes:
    """The archive with JSON entries changed: `program`, `weights`, `constants`, each by a function of its value.

    The function changes the value in place, or returns another.
    """
    names = {
        "program": PROGRAM,
        "weights": "data/weights/model_weights_config.json",
        "constants": "data/constants/model_constants_config.json",
    }
    content = entries(archive)
    for key, change in changes.items():
        value = json.loads(content[names[key]])
        other = change(value)
        content[names[key]] = json.dumps(value if other is None else other).encode()
    return archive_of(content)
