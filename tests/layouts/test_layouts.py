"""Both layouts in both containers: values, dtypes, ties, and what a checkpoint holds beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from modelzip_cli import load_file
from modelzip_cli.errors import UsageError
from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.schemes import SCHEMES, parse_scheme, scheme_class
from modelzip_cli.single import Settings, compress_file, restore_file
from tests import checkpoints
from tests.checkpoints import same
from tests.entropy import through_tables
from tests.strategies import restored

EXAMPLES = [scheme_class(scheme_id).example for scheme_id in SCHEMES]
each_suffix = pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
each_layout = pytest.mark.parametrize("layout", ["native", "dense"])


def quantize(source: Path, suffix: str, scheme: str = "int8", layout: str = "native", **recipe: Any) -> Path:
    output = source.parent / f"small{suffix}"
    compress_file(source, output, Recipe(scheme, layout, **recipe), Settings(jobs=2, force=True), command="quantize")
    return output


def restore(source: Path, suffix: str, **options: Any) -> Path:
    output = source.parent / f"restored{suffix}"
    restore_file(source, output, Settings(force=True), dtype=None, most_bytes=None, **options)
    return output


def plain(value: Any) -> Any:
    """A tree with tensors as lists and every type by name, for comparison."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return type(value).__name__, [(type(key).__name__, key, plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(item) for item in value]
    return type(value).__name__, value


@each_suffix
@each_layout
@pytest.mark.parametrize("scheme", EXAMPLES)
def test_treated_weights_are_what_the_scheme_alone_makes_of_them(tmp_path, scheme, layout, suffix):
    path = tmp_path / "m.pth"
    weight = checkpoints.weights(96, 200).double() if scheme == "fp32" else checkpoints.weights(96, 200)
    torch.save({"a.weight": weight}, path)
    if scheme == "lossless" and layout == "dense":
        with pytest.raises(UsageError, match="lossless has no dense layout"):
            Recipe(scheme, layout)
        return
    out = quantize(path, suffix, scheme, layout, rules=(Rule("*", scheme),))
    found = load_file(out)["a.weight"]
    one = parse_scheme(scheme)
    expected = (restored if one.levels or one.raw else through_tables)(one, weight.float().numpy())
    assert (found.float().numpy() == expected).all()
    if layout == "native":
        assert found.dtype == weight.dtype
        assert out.stat().st_size < path.stat().st_size


@each_suffix
@each_layout
def test_kept_tensors_are_the_same_bits_in_the_same_order(tmp_path, layout, suffix):
    path = checkpoints.plain_pth(tmp_path / "m.pth")
    found = load_file(quantize(path, suffix, "keep", layout))
    expected = checkpoints.state_dict()
    assert [*found] == [*expected]
    assert all(same(found[name], expected[name]) for name in expected)


@each_suffix
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_comes_back_from_the_native_layout(tmp_path, suffix):
    path = checkpoints.every_dtype_pth(tmp_path / "m.pth")
    expected = torch.load(path, weights_only=True)
    for found in (load_file(quantize(path, suffix)), load_file(restore(quantize(path, suffix), ".pth"))):
        assert [*found] == [*expected]
        assert not [name for name in expected if not same(found[name], expected[name])]


@each_suffix
@each_layout
def test_names_of_all_kinds_and_of_our_own_parts_do_not_collide(tmp_path, layout, suffix):
    path = checkpoints.odd_names_pth(tmp_path / "m.pth")
    found = load_file(quantize(path, suffix, "int4-g32", layout))
    expected = torch.load(path, weights_only=True)
    assert [*found] == [*expected]
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 0.01, name


@each_suffix
@each_layout
def test_views_are_read_as_the_weights_that_they_show(tmp_path, layout, suffix):
    for maker in (checkpoints.strided_pth, checkpoints.lstm_pth):
        path = maker(tmp_path / "m.pth")
        expected = torch.load(path, weights_only=True)
        found = load_file(quantize(path, suffix, "keep", layout))
        assert not [name for name in expected if not same(found[name], expected[name])]


@each_suffix
def test_a_tie_is_stored_once_in_the_native_layout_and_is_one_again_when_restored(tmp_path, suffix):
    path = checkpoints.tied_pth(tmp_path / "m.pth")
    out = quantize(path, suffix)
    found = torch.load(restore(out, ".pth"), weights_only=True)
    assert found["embed.weight"].data_ptr() == found["lm_head.weight"].data_ptr()
    if suffix == ".safetensors":
        with safe_open(out, "pt") as stored:
            assert not [name for name in stored.keys() if name.startswith("lm_head")]  # noqa: SIM118 no mapping


def test_a_tie_stays_a_tie_in_a_dense_torch_file_and_is_written_twice_in_a_dense_safetensors_file(tmp_path):
    path = checkpoints.tied_pth(tmp_path / "m.pth")
    found = torch.load(quantize(path, ".pth", layout="dense"), weights_only=True)
    assert found["embed.weight"].data_ptr() == found["lm_head.weight"].data_ptr()
    with safe_open(quantize(path, ".safetensors", layout="dense"), "pt") as stored:
        assert same(stored.get_tensor("lm_head.weight"), stored.get_tensor("embed.weight"))


def without_tensors(tree: dict[str, Any]) -> dict[str, Any]:
    """The trainer's values as they are without the optimizer's tensors."""
    tree["optimizer"]["state"][0] = {}
    return tree


@each_suffix
@each_layout
def test_values_beside_the_weights_keep_their_types_and_order(tmp_path, layout, suffix):
    path = checkpoints.trainer_pth(tmp_path / "m.pth")
    if (layout, suffix) == ("dense", ".safetensors"):  # has no place for them; a warning says so
        quantize(path, suffix, layout=layout)
        return
    out = quantize(path, suffix, layout=layout)
    found = torch.load(out if layout == "dense" else restore(out, ".pth"), weights_only=True)
    expected = without_tensors(torch.load(path, weights_only=True))
    assert [*found["model_state_dict"]] == [*expected["model_state_dict"]]
    assert type(found["model_state_dict"]) is type(expected["model_state_dict"])
    del found["model_state_dict"], expected["model_state_dict"]
    assert plain(found) == plain(expected)


@each_suffix
def test_tensors_beside_the_weights_stay_when_asked(tmp_path, suffix):
    path = checkpoints.trainer_pth(tmp_path / "m.pth")
    found = torch.load(restore(quantize(path, suffix, keep_extras=True), ".pth"), weights_only=True)
    expected = torch.load(path, weights_only=True)
    del found["model_state_dict"], expected["model_state_dict"]
    assert plain(found) == plain(expected)


@each_suffix
@each_layout
def test_small_and_empty_tensors_come_back(tmp_path, layout, suffix):
    path = checkpoints.small_and_empty_pth(tmp_path / "m.pth")
    found = load_file(quantize(path, suffix, "int8", layout))
    for name, tensor in checkpoints.small_and_empty().items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert name == "matrix" or same(found[name], tensor)


@each_layout
@pytest.mark.parametrize("scheme", ["int4-tensor-mse", "fixed8-mse", "int8", "binary-tensor"])
def test_a_rule_that_reaches_empty_tensors_does_no_harm(tmp_path, layout, scheme):
    path = checkpoints.small_and_empty_pth(tmp_path / "m.pth")
    expected = checkpoints.small_and_empty()
    found = load_file(quantize(path, ".pth", layout=layout, rules=tuple(Rule(name, scheme) for name in expected)))
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in expected.items()}


@each_layout
def test_the_metadata_of_a_safetensors_file_stays(tmp_path, layout):
    path = checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    with safe_open(quantize(path, ".safetensors", layout=layout), "pt") as stored:
        assert stored.metadata()["format"] == "pt"


@each_layout
@each_suffix
def test_the_number_of_workers_changes_no_byte(tmp_path, layout, suffix):
    path = tmp_path / "m.pth"
    torch.save({"large": checkpoints.weights(1100, 1024), **checkpoints.state_dict()}, path)
    written = []
    for jobs in (1, 3):
        out = tmp_path / f"{jobs}{suffix}"
        compress_file(path, out, Recipe("int4-tensor-mse", layout), Settings(jobs=jobs), command="quantize")
        written.append(out.read_bytes())
    assert written[0] == written[1]
