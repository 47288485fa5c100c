"""Lossless is no scheme but the source itself: every bit of every dtype comes back through both containers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzip_cli.errors import UsageError
from modelzip_cli.recipe import Recipe
from modelzip_cli.schemes import parse_scheme
from modelzip_cli.single import Settings, compress_file, restore_file
from tests import checkpoints
from tests.checkpoints import same
from tests.strategies import WEIGHTS


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_are_the_codes(name):
    scheme = parse_scheme("lossless")
    weight = WEIGHTS[name]
    assert scheme.raw
    assert scheme.levels is None
    assert scheme.decode(scheme.encode(weight, {}), {}).tobytes() == weight.tobytes()
    assert scheme.param_specs(weight.shape[1]) == {}


@pytest.mark.parametrize("make", [checkpoints.every_dtype_safetensors, checkpoints.bf16_safetensors])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_bit_of_every_dtype_comes_back(tmp_path, make, suffix):
    source = make(tmp_path / "m.safetensors")
    small, back = tmp_path / f"small{suffix}", tmp_path / "back.safetensors"
    compress_file(source, small, Recipe("lossless"), Settings(), command="compress")
    restore_file(small, back, Settings(), dtype=None, most_bytes=None)
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(same(before[name], after[name]) for name in before)


def test_a_restored_safetensors_file_is_its_source_byte_for_byte(tmp_path):
    source = tmp_path / "m.safetensors"
    weight = checkpoints.weights(70, 90).bfloat16()
    weight[3, 5], weight[4] = float("nan"), 0
    save_file({"b": weight, "a": torch.arange(5)}, source, metadata={"format": "pt", "é": "\n"})
    compress_file(source, tmp_path / "small.safetensors", Recipe("lossless"), Settings(), command="compress")
    restore_file(tmp_path / "small.safetensors", tmp_path / "back.safetensors", Settings(), dtype=None, most_bytes=None)
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_a_torch_file_comes_back_with_its_types_and_ties(tmp_path):
    source = checkpoints.tied_pth(tmp_path / "m.pth")
    compress_file(source, tmp_path / "small.pth", Recipe("lossless"), Settings(), command="compress")
    restore_file(tmp_path / "small.pth", tmp_path / "back.pth", Settings(), dtype=None, most_bytes=None)
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / "back.pth"))
    assert type(before) is type(after)
    assert [*before] == [*after]
    assert all(same(before[name], after[name]) for name in before)
    assert after["lm_head.weight"].data_ptr() == after["embed.weight"].data_ptr()


def test_lossless_needs_the_native_layout_and_entropy_coding():
    with pytest.raises(UsageError, match="dense"):
        Recipe("lossless", "dense")
    with pytest.raises(UsageError, match="coding"):
        Recipe("lossless", coder="bitpack")


def test_pruned_weights_take_few_bytes(tmp_path):
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)).bfloat16()
    weight[torch.rand(200, 200, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    save_file({"w": weight}, tmp_path / "m.safetensors")
    report = compress_file(
        tmp_path / "m.safetensors", tmp_path / "s.safetensors", Recipe("lossless"), Settings(), command="compress"
    )
    (row,) = report.tensors
    assert 8 * row.bytes_after / weight.numel() < 1.7
