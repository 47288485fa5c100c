"""What is inside a file: where the weights sit, what stands beside them, how they lie in their storages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from modelzip_cli import load_file
from tests.checkpoints import same, weights
from tests.real import makers
from tests.real.checks import STATE, assert_close, assert_same, each_form, load

# Where the weights sit

NESTINGS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "flat": (STATE, lambda found: found),
    "model_state_dict": ({"model_state_dict": STATE, "epoch": 3}, lambda found: found["model_state_dict"]),
    "model_state": ({"step": 3, "model_state": STATE}, lambda found: found["model_state"]),
    "Lightning": ({"state_dict": STATE, "pytorch-lightning_version": "2.1"}, lambda found: found["state_dict"]),
    "model": ({"model": STATE, "args": {"lr": 0.1}}, lambda found: found["model"]),
    "two levels": (
        {"model": {"state_dict": STATE, "model_args": {"layers": [4, 5]}}, "best": 0.5},
        lambda found: found["model"]["state_dict"],
    ),
}


@pytest.mark.parametrize("place", NESTINGS)
@each_form
def test_weights_inside_any_nesting_come_back_in_their_place(write, place, run, there_and_back, tmp_path):
    value, find = NESTINGS[place]
    path = write(tmp_path / "model.pth", value)
    found = load(there_and_back(path))
    assert_close(find(found), STATE)
    assert [*found] == [*value]
    assert run("inspect", path, "--json").json["source"]["parameters"] == sum(t.numel() for t in STATE.values())


@each_form
@pytest.mark.parametrize("shape", [(96, 64), (1000,), (1,)])
def test_a_bare_tensor_inside_a_file_comes_back_bare(write, shape, there_and_back, tmp_path):
    value = weights(*shape, seed=60) if shape != (1,) else torch.tensor(0.5)
    found = load(there_and_back(write(tmp_path / "tensor.pt", value)))
    assert isinstance(found, torch.Tensor)
    assert_close({"it": found}, {"it": value})


# Beside them: values of all kinds, with their types


def values_beside() -> dict[Any, Any]:
    """What stands beside weights in the wild."""
    vocabulary = [*map(chr, range(32, 1032)), "\t", " ", ".", "", "é", "漢字", "🙂", "a.b"]
    return {
        "step": 3_876_387,
        "epoch": 12.0,
        "error_rate": 0.014200000000000001,
        "best": float("inf"),
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.999), "warmup": None, "amp": True, "layers": [1, (2, 3), []]},
        "history": [{"loss": 1 / 3, "step": step} for step in range(5)],
        "char_to_id": {char: number for number, char in enumerate(vocabulary)},
        "id_to_char": dict(enumerate(vocabulary)),
        "path": "C:\\Users\\me\\data\\new_run\\t.csv",
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 12}, "current": {"ready": 0}}}},
        "hparams_name": "kwargs",
        "sizes": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:0"),
        "names": {"a", "b"},
        7: "an int key",
        (1, "two"): "a tuple key",
        None: "no key",
        True: "a key that equals 1",
        2.5: "a float key",
        "\t": 1,
        " ": 2,
        ".": 3,
        "": 4,
        "漢字.🙂": OrderedDict([(2, "b"), (1, "a")]),
    }


@each_form
def test_values_inside_keep_their_types_their_digits_and_their_order(write, there_and_back, tmp_path):
    value = {"state_dict": STATE, **values_beside()}
    found = load(there_and_back(write(tmp_path / "model.ckpt", value)))
    assert [*found] == [*value]
    del found["state_dict"]
    assert typed(found) == typed(values_beside())


def typed(value: Any) -> Any:
    """A value with the type of everything in it spelled out."""
    if isinstance(value, dict):
        return type(value).__name__, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [typed(item) for item in value]
    return type(value).__name__, sorted(value) if isinstance(value, set) else repr(value)


def test_int_keys_inside_stay_int_in_a_dense_file(run, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": STATE, **values_beside()}, path)
    assert run("quantize", path, "-s", "fp16", "--layout", "dense").exit_code == 0
    found = load(tmp_path / "model.fp16.ckpt")
    del found["state_dict"]
    assert typed(found) == typed(values_beside())


# Optimizer state


def adam(keys: list[int]) -> dict[str, Any]:
    """Two moments a weight: two thirds of the values of a file, denormals among them."""
    generator = torch.Generator().manual_seed(0)
    shapes = [value.shape for value in STATE.values() if value.is_floating_point()]
    state = {}
    for key, shape in zip(keys, shapes, strict=True):
        squares = 10 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 37 - 42)
        moments = torch.randn(shape, generator=generator) * 1e-3
        moments.view(-1)[::7] = 5.6e-45
        state[key] = {"step": 1000, "exp_avg": moments, "exp_avg_sq": squares.float()}
    return {"state": state, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": keys}]}


FLOATS = sum(value.is_floating_point() for value in STATE.values())
OPTIMIZER_KEYS = {"numbers": [*range(FLOATS)], "addresses": [140_234_567_890_128 + 72 * n for n in range(FLOATS)]}


@pytest.mark.parametrize("kind", OPTIMIZER_KEYS)
@each_form
def test_optimizer_state_inside_is_counted_apart_and_kept_only_when_asked_and_then_exactly(
    write, kind, run, there_and_back, tmp_path
):
    keys = OPTIMIZER_KEYS[kind]
    path = write(tmp_path / "model.pth", {"model": STATE, "optimizer": adam(keys)})
    found = run("inspect", path, "--json").json
    assert found["source"]["parameters"] == sum(value.numel() for value in STATE.values())
    beside = [row for row in found["tensors"] if not row["weights"]]
    assert len(beside) == 2 * len(keys)

    report = run("quantize", path, "--json", "-o", "x.safetensors").json
    rows = [row for row in report["tensors"] if row["name"].startswith("optimizer.")]
    assert {row["status"] for row in rows} == {"dropped"}

    report = run("quantize", path, "--keep-extras", "--json", "-o", "y.safetensors").json
    rows = [row for row in report["tensors"] if row["name"].startswith("optimizer.")]
    assert {row["status"] for row in rows} == {"kept"}
    kept = load(there_and_back(path, "--keep-extras"))["optimizer"]
    assert [*kept["state"]] == keys
    assert {type(key) for key in kept["state"]} == {int}
    assert kept["param_groups"] == adam(keys)["param_groups"]
    for key, moments in adam(keys)["state"].items():
        assert_same({"a": kept["state"][key]["exp_avg"]}, {"a": moments["exp_avg"]})
        assert_same({"a": kept["state"][key]["exp_avg_sq"]}, {"a": moments["exp_avg_sq"]})


@pytest.mark.parametrize("scheme", ["int8", "int4-g32-asym", "int2-g32-mse", "binary", "fixed8", "fp16"])
def test_denormals_inside_weights_are_no_error_and_no_nan(scheme, run, there_and_back, tmp_path):
    value = {"w": adam([*range(FLOATS)])["state"][0]["exp_avg_sq"], "v": torch.full((64, 64), 5.6e-45)}
    torch.save(value, tmp_path / "m.pth")
    found = load(there_and_back(tmp_path / "m.pth", "-s", scheme))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert run("quantize", tmp_path / "m.pth", "-s", scheme, "--json").json["totals"]["coverage"] > 0


# Prefixes


def test_the_prefix_of_data_parallel_inside_names_stays(there_and_back, tmp_path):
    value = {f"module.{key}": tensor for key, tensor in STATE.items()}
    torch.save(value, tmp_path / "m.pth")
    assert_close(load(there_and_back(tmp_path / "m.pth")), value)


# CUDA tags


@pytest.mark.parametrize("place", ["cuda:0", "cuda:7", "mps", "xpu:0", "meta_of_another_kind"])
@each_form
def test_storages_inside_tagged_for_another_device_are_read_on_this_one(
    write, place, there_and_back, tmp_path, monkeypatch
):
    path = makers.tagged(tmp_path / "m.pth", {"model": STATE, "epoch": 3}, write, monkeypatch, place)
    assert place.encode() in path.read_bytes()
    assert_same(load_file(path), STATE)
    back = there_and_back(path)
    found = torch.load(back, weights_only=True)  # without map_location: the result is for any machine
    assert_close(found["model"], STATE)


# Shared storage that is not tying


@each_form
def test_slices_of_one_storage_inside_are_neither_ties_nor_counted_many_times(write, run, there_and_back, tmp_path):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(64, 48, num_layers=2, bidirectional=True)
    flat = torch.cat([value.detach().reshape(-1) for value in lstm.parameters()])
    value, begin = OrderedDict(), 0
    for key, parameter in lstm.named_parameters():
        value[key] = flat[begin : begin + parameter.numel()].view(parameter.shape)
        begin += parameter.numel()
    path = write(tmp_path / "m.pth", value)
    found = run("inspect", path, "--json").json
    assert len(value) == 16
    assert not [row for row in found["tensors"] if row["tied_to"]]
    assert sum(entry["bytes"] for entry in found["dtypes"].values()) == flat.nbytes
    assert_close(load(there_and_back(path)), value)


@each_form
def test_tied_and_overlapping_and_sliced_tensors_inside_are_told_apart(write, run, there_and_back, tmp_path):
    base = weights(128, 64, seed=61)
    value = {
        "whole": base,
        "tied": base,
        "same bytes of another shape": base.view(64, 128),
        "upper": base[:64],
        "overlapping": base[32:96],
        "transposed": base.t(),
        "equal but apart": base.clone(),
    }
    path = write(tmp_path / "m.pth", value)
    found = run("inspect", path, "--json").json
    assert {row["name"]: row["tied_to"] for row in found["tensors"] if row["tied_to"]} == {"tied": "whole"}
    back = load(there_and_back(path))
    assert_close(back, value)
    assert back["tied"].data_ptr() == back["whole"].data_ptr()
    assert len({tensor.data_ptr() for tensor in back.values()}) == len(value) - 1


# Non-contiguous tensors


@each_form
def test_reversed_strides_inside_give_the_same_weights_and_the_same_bytes_as_c_order(write, run, tmp_path):
    value = {
        "conv": weights(3, 3, 3, 10, seed=62).permute(3, 2, 1, 0),
        "dense": weights(416, 262, seed=63).t(),
        "wide": weights(3, 5, 700, 40, seed=64).permute(3, 2, 1, 0),
    }
    assert (value["conv"].shape, value["conv"].stride()) == ((10, 3, 3, 3), (1, 10, 30, 90))
    strided = write(tmp_path / "strided.pth", value)
    plain = write(tmp_path / "plain.pth", {key: tensor.contiguous() for key, tensor in value.items()})
    assert_same(load_file(strided), value)
    outputs = []
    for path in (strided, plain):
        assert run("quantize", path, "-s", "int4-g64", "-o", f"{path.stem}.safetensors").exit_code == 0
        outputs.append(load_safetensors(tmp_path / f"{path.stem}.safetensors"))
    assert_same(*outputs)
    assert run("restore", "strided.safetensors", "-o", "back.pth").exit_code == 0
    assert all(value.is_contiguous() for value in load(tmp_path / "back.pth").values())
    assert run("restore", strided, "-o", "converted.safetensors").exit_code == 0
    assert {key: same(tensor, value[key]) for key, tensor in load(tmp_path / "converted.safetensors").items()} == (
        dict.fromkeys(value, True)
    )
