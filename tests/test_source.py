"""A checkpoint with other bits for some of its tensors, and masks of weights as they have come to be."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli import load_file
from modelzip_cli.criteria.base import Place
from modelzip_cli.criteria.masks import Given
from modelzip_cli.pruning import Pruned
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Aid, Settings, compress_file
from modelzip_cli.source import open_source, overlaid
from modelzip_cli.tensors import F32, TensorSpec
from tests.checkpoints import same, trainer_pth, weights
from tests.test_format_page import manifest_of

TENSORS = {"a.weight": weights(70, 64), "b.running_mean": weights(9, seed=1), "c.weight": weights(66, 64, seed=2)}
OTHER = weights(9, seed=5)
REPLACED = {"b.running_mean": OTHER.numpy().view(np.uint32)}


def file(folder: Path) -> Path:
    save_file(TENSORS, folder / "m.safetensors")
    return folder / "m.safetensors"


def directory(folder: Path) -> Path:
    path, shards = folder / "model", {"model-1.safetensors": ["a.weight"], "model-2.safetensors": [*TENSORS][1:]}
    path.mkdir()
    for name, inside in shards.items():
        save_file({each: TENSORS[each] for each in inside}, path / name)
    weight_map = {each: name for name, inside in shards.items() for each in inside}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text("{}")
    return path


each_source = pytest.mark.parametrize("make", [file, directory])


@each_source
def test_what_is_replaced_is_read_and_all_else_is_as_it_was(tmp_path, make):
    path = make(tmp_path)
    with closing(open_source(path)) as source:
        assert overlaid(source, {}) is source
        other = overlaid(source, REPLACED)
        assert {**other.specs} == {**source.specs}
        assert (other.file.label, other.sha256, other.compressed) == (source.file.label, source.sha256, False)
        assert (other.read("b.running_mean", 2, 7) == REPLACED["b.running_mean"][2:7]).all()
        for name in ("a.weight", "c.weight"):
            assert (other.read(name, 64, 500) == source.read(name, 64, 500)).all()
        assert (source.read("b.running_mean", 0, 9) == TENSORS["b.running_mean"].numpy().view(np.uint32)).all()
        other.finish()


@each_source
def test_the_output_holds_what_is_replaced_and_its_manifest_says_so(tmp_path, make):
    path = make(tmp_path)
    out = tmp_path / ("small.safetensors" if make is file else "small")
    compress_file(path, out, Recipe("int8"), Settings(), command="quantize", aid=Aid(replaced=REPLACED))
    files = [out] if make is file else sorted(out.glob("*.safetensors"))
    found = {name: tensor for each in files for name, tensor in load_file(each).items()}
    assert same(found["b.running_mean"], OTHER)
    assert all(manifest_of(each)["aid"] == {"changed": ["b.running_mean"]} for each in files)


def test_without_help_of_a_model_no_manifest_speaks_of_it(tmp_path):
    out = tmp_path / "small.safetensors"
    for aid in (None, Aid(), Aid(masks={})):
        compress_file(file(tmp_path), out, Recipe("int8"), Settings(force=True), command="quantize", aid=aid)
        assert "aid" not in manifest_of(out)


def test_verify_does_not_replay_what_a_model_helped_with(tmp_path, modelzip):
    out = tmp_path / "small.safetensors"
    compress_file(file(tmp_path), out, Recipe("int8"), Settings(), command="quantize", aid=Aid(replaced=REPLACED))
    assert modelzip("verify", out).exit_code == 0
    run = modelzip("verify", out, "--against", "m.safetensors")
    assert run.exit_code == 2
    assert run.stderr.count("\n") == 1
    assert "was made with the help of a model on data" in run.stderr


def test_a_mask_of_weights_as_they_have_come_to_be_gives_the_rows_asked_for():
    bits = np.arange(60, dtype=np.uint32)
    mask, spec = Given(bits), TensorSpec("w", F32, (5, 3, 4))
    assert (mask.apply(np.zeros((5, 12), np.uint32), Place(spec, 0)) == bits.reshape(5, 12)).all()
    assert (mask.apply(np.zeros((2, 12), np.uint32), Place(spec, 3)) == bits[36:].reshape(2, 12)).all()


def test_weights_that_have_come_to_be_are_stored_and_counted_as_pruned(tmp_path):
    path, out = file(tmp_path), tmp_path / "small.safetensors"
    trained = weights(70, 64, seed=9) * (weights(70, 64, seed=3) > 0)
    masks = {"a.weight": Pruned(Given(trained.numpy().view(np.uint32).reshape(-1)), int((trained == 0).sum()))}
    report = compress_file(path, out, Recipe("lossless"), Settings(), command="prune", aid=Aid(masks=masks))
    assert torch.equal(load_file(out)["a.weight"], trained)
    assert same(load_file(out)["c.weight"], TENSORS["c.weight"])
    rows = {row.name: row for row in report.tensors}
    assert (rows["a.weight"].pruned, rows["c.weight"].pruned) == (True, False)
    assert rows["a.weight"].sparsity == pytest.approx(float((trained == 0).float().mean()), abs=1e-6)
    assert manifest_of(out)["aid"] == {"changed": ["a.weight"]}


def test_a_torch_file_keeps_what_is_around_the_weights(tmp_path):
    path, out = trainer_pth(tmp_path / "t.pth"), tmp_path / "small.pth"
    with closing(open_source(path)) as source:
        name, spec = next((name, spec) for name, spec in source.specs.items() if len(spec.shape) == 1)
    replaced = {name: np.zeros(spec.size, spec.dtype.unit)}
    compress_file(path, out, Recipe("int8"), Settings(), command="quantize", aid=Aid(replaced=replaced))
    assert not load_file(out)[name].any()
    with closing(open_source(path)) as before, closing(open_source(out)) as after:
        assert [*after.outer.names] == [*before.outer.names]
