"""Exported programs: pt2 files of torch.export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from modelzip_cli import load_file
from tests.checkpoints import same, weights
from tests.hostile.makers import call, pickle_of, text
from tests.real import makers
from tests.real.checks import assert_close, assert_refused, container_of, files_in


def test_a_pt2_file_is_read_under_the_names_of_its_state_dict(run, tmp_path):
    path = tmp_path / "model.pt2"
    expected = makers.exported(path)
    found = run("inspect", path, "--json").json["source"]
    assert (found["container"], found["tensors"]) == ("pt2", len(expected))
    loaded = load_file(path)
    assert sorted(loaded) == sorted(expected)
    assert all(same(loaded[key], expected[key]) for key in expected)


def test_a_pt2_file_becomes_a_native_and_then_a_safetensors_file(run, tmp_path):
    expected = makers.exported(tmp_path / "model.pt2")
    assert run("quantize", tmp_path / "model.pt2").exit_code == 0
    done = run("restore", tmp_path / "model.int8.safetensors")
    assert done.exit_code == 0, done.stderr
    found = load_safetensors(tmp_path / "model.int8.restored.safetensors")
    assert_close(dict(sorted(found.items())), dict(sorted(expected.items())))


def test_a_tie_in_a_pt2_file_is_stored_once(run, tmp_path):
    makers.exported(tmp_path / "model.pt2")
    rows = run("inspect", tmp_path / "model.pt2", "--json").json["tensors"]
    assert {row["name"]: row["tied_to"] for row in rows if row["tied_to"]} == {"head.weight": "embed.weight"}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ""])
def test_a_pt2_file_is_known_by_its_content(suffix, run, tmp_path):
    makers.exported(tmp_path / "model.pt2")
    (tmp_path / "model.pt2").rename(tmp_path / f"exported{suffix}")
    assert container_of(run, tmp_path / f"exported{suffix}") == "pt2"


def test_a_pt2_file_is_found_by_r(run, tmp_path):
    (tmp_path / "models").mkdir()
    makers.exported(tmp_path / "models" / "model.pt2")
    assert run("quantize", "-r", tmp_path / "models").exit_code == 0
    assert files_in(tmp_path / "models") == ["model.int8.safetensors", "model.pt2", "modelzip.jsonl"]


@pytest.mark.parametrize("name", ["sample_inputs/model.pt", "models/model.json", "constants/tensor_0"])
def test_nothing_in_a_pt2_file_runs_and_what_is_not_weights_is_not_needed(name, run, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.pt2"
    expected = makers.exported(path)
    payload = pickle_of(call("os.system", text(f"touch {canary}")))
    makers.edit_zip(path, lambda entry_name, data: payload if entry_name.endswith(name) else data)
    assert run("quantize", path).exit_code == 0
    assert not canary.exists()
    assert sorted(load_file(tmp_path / "model.int8.safetensors")) == sorted(expected)


def edit_pt2_config(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the list of weights of an exported program."""

    def change(entry_name: str, data: bytes) -> bytes:
        if not entry_name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        edit(config["config"])
        return json.dumps(config).encode()

    makers.edit_zip(path, change)


def test_a_weight_in_a_pt2_file_that_only_a_pickle_could_give_is_unsafe(run, tmp_path):
    path = tmp_path / "model.pt2"
    makers.exported(path)
    edit_pt2_config(path, lambda config: config["wide.weight"].update(use_pickle=True))
    assert_refused(run("quantize", path), 5, "wide.weight")


WRONG_PT2: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file that is not there": lambda config: config["wide.weight"].update(path_name="weight_99"),
    "a path that climbs": lambda config: config["wide.weight"].update(path_name="../constants/tensor_0"),
    "a size too large": lambda config: config["wide.weight"]["tensor_meta"].update(sizes=[{"as_int": 9999}] * 2),
    "a negative size": lambda config: config["wide.weight"]["tensor_meta"].update(sizes=[{"as_int": -1}] * 2),
    "a symbol for a size": lambda config: config["wide.weight"]["tensor_meta"].update(sizes=[{"as_expr": "s0"}] * 2),
    "a dtype that there is not": lambda config: config["wide.weight"]["tensor_meta"].update(dtype=99),
    "an offset beyond the end": lambda config: config["wide.weight"]["tensor_meta"].update(
        storage_offset={"as_int": 10**6}
    ),
    "no sizes": lambda config: config["wide.weight"]["tensor_meta"].pop("sizes"),
    "an entry that is a list": lambda config: config.update(extra=[]),
}


@pytest.mark.parametrize("wrong", WRONG_PT2)
def test_a_pt2_file_whose_list_of_weights_is_wrong_is_refused(wrong, run, tmp_path):
    path = tmp_path / "model.pt2"
    makers.exported(path)
    edit_pt2_config(path, WRONG_PT2[wrong])
    assert_refused(run("quantize", path), 1, "model.pt2")
    assert files_in(tmp_path) == ["model.pt2"]


def test_a_pt2_file_with_strides_and_dtypes_of_all_kinds_is_read(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(weights(64, 96, seed=91).t())
            for dtype in (
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.int64,
                torch.int8,
                torch.uint8,
                torch.bool,
            ):
                self.register_buffer(f"of_{str(dtype)[6:]}", torch.ones(3, dtype=dtype))

        def forward(self, x):
            return x @ self.w + sum(buffer.sum().float() for buffer in self.buffers())

    model = Odd()
    torch.export.save(torch.export.export(model, (torch.ones(2, 96),)), tmp_path / "m.pt2")
    found = load_file(tmp_path / "m.pt2")
    assert sorted(found) == sorted(model.state_dict())
    assert all(same(found[key], value.detach()) for key, value in model.state_dict().items())
