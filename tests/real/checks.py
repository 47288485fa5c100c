"""What is read from a file by torch or safetensors, and what it has to be."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from tests import checkpoints
from tests.checkpoints import same
from tests.conftest import Run
from tests.real.makers import WRITERS, Tensors, index_name, shard_names

each_form = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
STATE = checkpoints.state_dict()


def load(path: Path) -> Any:
    """A file as torch or safetensors read it, by its content: torch.load itself looks at the suffix."""
    data = path.read_bytes()
    if data[8:9] == b"{":
        return load_safetensors(path)
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def is_treated(value: torch.Tensor) -> bool:
    """Whether int8 is for this tensor by default, whatever its name."""
    return value.is_floating_point() and value.dim() >= 2 and value.numel() >= 4096


def assert_same(found: Tensors, expected: Tensors) -> None:
    """Equal names in equal order, dtypes, shapes and bits."""
    assert [*found] == [*expected]
    assert not [key for key in expected if not same(found[key], expected[key])]


def assert_close(found: Tensors, expected: Tensors) -> None:
    """The same, with what int8 by the row costs in the tensors that it is for."""
    assert [*found] == [*expected]
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        if is_treated(value):
            assert (found[key].float() - value.float()).abs().max() <= value.float().abs().max() / 100, key
        else:
            assert same(found[key], value), key


def container_of(run: Callable[..., Run], path: Path) -> str:
    """The container that `inspect` names."""
    done = run("inspect", path, "--json")
    assert done.exit_code == 0, done.stderr
    return done.json["source"]["container"]


def assert_refused(done: Run, code: int, *said: str) -> None:
    """One line on stderr that says all of `said`, and nothing about how torch would go on."""
    assert done.exit_code == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert "bug in modelzip" not in done.stderr
    assert "weights_only" not in done.stderr
    assert [words for words in said if words.lower() not in done.stderr.lower()] == [], done.stderr


def files_in(folder: Path) -> list[str]:
    """All files below a folder, by their relative names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_directory(folder: Path, suffix: str) -> Tensors:
    """All tensors of a directory as its index says, or its one file."""
    index = folder / index_name(suffix)
    if not index.exists():
        return load(folder / shard_names(1, suffix)[0])
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {file: load(folder / file) for file in set(weight_map.values())}
    assert sorted(key for shard in shards.values() for key in shard) == sorted(weight_map)
    return {key: shards[file][key] for key, file in weight_map.items()}
