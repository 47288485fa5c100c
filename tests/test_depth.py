"""Fewer layers: which blocks repeat, which go, what the others are called, and what config.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzip_cli.amounts import Depth
from modelzip_cli.depth import choose, find_stacks
from modelzip_cli.errors import UsageError
from modelzip_cli.tensors import DTYPES, TensorSpec

LAYERS = 6
SHARDS = 3


def specs(*names: str, shape: tuple[int, ...] = (8, 8)) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, DTYPES["f32"], shape) for name in names}


def blocks(stack: str, layers: int, *parts: str) -> list[str]:
    return [f"{stack}.{number}.{part}" for number in range(layers) for part in (parts or ("w", "b"))]


def model(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """Every layer has other values."""
    torch.manual_seed(0)
    found = {"embed.weight": torch.randn(64, 64)}
    for number in range(layers):
        found |= {f"model.layers.{number}.{part}.weight": torch.randn(64, 64) for part in ("up", "down")}
        found[f"model.layers.{number}.norm.weight"] = torch.full((64,), float(number))
    return found | {"norm.weight": torch.ones(64)}


def directory(folder: Path, config: dict) -> Path:
    """A model in three shards with an index."""
    folder.mkdir()
    tensors, weight_map = model(), {}
    for number in range(SHARDS):
        names = list(tensors)[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({each: tensors[each] for each in names}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def check(found: dict[str, torch.Tensor], left: list[int]) -> None:
    """What is left are these layers of `model`, numbered from 0."""
    source = model()
    expected = {name: value for name, value in source.items() if ".layers." not in name}
    for new, old in enumerate(left):
        for part in ("up", "down", "norm"):
            expected[f"model.layers.{new}.{part}.weight"] = source[f"model.layers.{old}.{part}.weight"]
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_blocks_repeat_where_they_are_numbered_without_a_gap_and_have_the_same_tensors():
    assert find_stacks(specs(*blocks("h", 3), "wte.weight", "head.weight")) == {"h": 3}
    assert find_stacks(specs(*blocks("encoder.layer", 2), *blocks("decoder.layer", 4))) == {
        "encoder.layer": 2,
        "decoder.layer": 4,
    }
    assert find_stacks(specs(*blocks("layers", 2, "experts.0.w", "experts.1.w"))) == {"layers": 2}  # the outer ones
    assert find_stacks(specs("features.0.weight", "features.3.weight")) == {}
    assert find_stacks(specs(*blocks("h", 2), "h.1.extra")) == {}
    assert find_stacks(specs(*blocks("h", 2)) | specs("h.1.w", shape=(8, 9))) == {}
    assert find_stacks(specs(*blocks("h", 1))) == {}


@pytest.mark.parametrize(
    ("share", "layers", "gone"), [(0.75, 4, (2,)), (0.5, 4, (1, 2)), (0.1, 4, (0, 1, 2)), (0.9, 12, (10,))]
)
def test_a_share_keeps_the_last_layer_and_drops_those_before_it(share, layers, gone):
    assert choose(specs(*blocks("h", layers)), Depth(share), "m").gone == gone


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (["a.weight", "b.weight"], Depth(0.5), "no repeated blocks"),
        (blocks("h", 4), Depth(None, (4,)), "no layer 4: h has 0 to 3"),
        (blocks("h", 2), Depth(None, (0, 1)), "would drop all 2 layers"),
        (blocks("h", 2), Depth(0.9), "all of them"),
        (blocks("h", 2), Depth(0.5, (), "g"), "no blocks g.N repeat; there are h"),
        (blocks("h", 2) + blocks("g", 2), Depth(0.5), "say which"),
    ],
)
def test_what_cannot_be_dropped_is_refused_with_the_reason(names, asked, message):
    with pytest.raises(UsageError, match=message):
        choose(specs(*names), asked, "m.safetensors")


@pytest.mark.parametrize(
    ("depth", "drop_layers"),
    [("75", None), ("1", None), ("0", None), ("x", None), (None, ""), (None, "1,"), (None, "a"), ("0.5", "1")],
)
def test_what_is_no_share_and_no_list_of_layers_is_a_mistake(depth, drop_layers):
    with pytest.raises(UsageError):
        Depth.of(depth, drop_layers)


@pytest.mark.parametrize("text", ["0.75", "decoder.layers:0.5"])
def test_a_share_is_written_as_it_was_read(text):
    assert Depth.of(**{"depth": text, "drop_layers": None} | Depth.of(text, None).to_json()) == Depth.of(text, None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", ["native", "dense"])
def test_the_layers_that_are_left_are_numbered_anew(modelzip, tmp_path, suffix, layout):
    source = tmp_path / f"m{suffix}"
    save_file(model(), source) if suffix == ".safetensors" else torch.save({"net": model(), "epoch": 3}, source)
    out = tmp_path / (f"small{suffix}" if layout == "dense" else "small.safetensors")

    run = modelzip("prune", source, "--drop-layers", "4,1", "--layout", layout, "-o", out, "--json")

    assert run.json["depth"] == {"stack": "model.layers", "layers": LAYERS, "dropped": [1, 4]}
    gone = [row["name"] for row in run.json["tensors"] if row["status"] == "dropped"]
    assert sorted(gone) == sorted(name for name in model() if ".layers.1." in name or ".layers.4." in name)
    if layout == "native":
        assert modelzip("verify", out, "--against", source).exit_code == 0
        assert modelzip("restore", out, "-o", f"back{suffix}").exit_code == 0
        out = tmp_path / f"back{suffix}"
    found = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    if suffix == ".pth":
        assert found.pop("epoch") == 3
        found = found["net"]
    check(found, [0, 2, 3, 5])


@pytest.mark.parametrize("layout", ["native", "dense"])
def test_a_directory_says_in_its_config_how_many_layers_are_left(modelzip, tmp_path, layout):
    config = {
        "num_hidden_layers": LAYERS,
        "layer_types": list("abcdef"),
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "text_config": {"n_layer": LAYERS, "heads": [1, 2, 3, 4, 5, 6]},
        "hidden_size": 64,
    }
    source = directory(tmp_path / "hf", config)

    run = modelzip("prune", source, "--drop-layers", "0,1,2", "--layout", layout, "-o", tmp_path / "small", "--json")

    assert run.exit_code == 0
    assert json.loads((tmp_path / "small" / "config.json").read_text()) == {
        "num_hidden_layers": 3,
        "layer_types": ["d", "e", "f"],
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "text_config": {"n_layer": 3, "heads": [4, 5, 6]},
        "hidden_size": 64,
    }
    assert json.loads((source / "config.json").read_text()) == config
    if layout == "native":
        assert modelzip("verify", tmp_path / "small", "--against", source).exit_code == 0
        assert modelzip("restore", tmp_path / "small", "-o", tmp_path / "back").exit_code == 0
    folder = tmp_path / ("back" if layout == "native" else "small")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    check({name: load_file(folder / file)[name] for name, file in index.items()}, [3, 4, 5])


def test_a_config_that_names_no_number_of_layers_is_warned_of(modelzip, tmp_path):
    source = directory(tmp_path / "hf", {"hidden_size": 64})
    run = modelzip("prune", source, "--depth", "0.5", "-n", "--json")
    assert any("config.json" in warning for warning in run.json["warnings"])


def test_layers_and_weights_can_go_in_one_run(modelzip, sample, tmp_path):
    source = sample("docs_lm_trainer.pth")
    run = modelzip("prune", source, "--depth", "0.5", "--sparsity", "0.5", "-o", "small.safetensors", "--json")
    assert (run.json["depth"]["dropped"], run.json["pruning"]["sparsity"]) == ([1, 2], 0.5)
    assert modelzip("verify", "small.safetensors", "--against", source).exit_code == 0
    assert modelzip("prune", source, "--depth", "0.5", "--sparsity", "0.5").exit_code == 0
    assert (tmp_path / "docs_lm_trainer.d50-p50.safetensors").exists()
