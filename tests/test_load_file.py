"""`from modelzip_cli import load_file`: the weights of any file that modelzip reads, as tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelzip_cli import load_file
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from tests import checkpoints
from tests.checkpoints import same


def compressed(source: Path, scheme: str = "int8") -> Path:
    output = source.parent / f"small.{scheme}.safetensors"
    compress_file(source, output, Recipe(scheme), Settings(), command="quantize")
    return output


def test_kept_tensors_are_equal_and_treated_ones_close(tmp_path):
    source = checkpoints.plain_pth(tmp_path / "m.pth")
    expected = checkpoints.state_dict()
    found = load_file(compressed(source))
    assert [*found] == [*expected]
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.dim() >= 2:
            assert 0 < (found[name] - tensor).abs().max() < 0.001
        else:
            assert same(found[name], tensor)


def test_weights_load_into_a_model(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 80))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    found = load_file(compressed(tmp_path / "m.pth"))
    assert str(model.load_state_dict(found)) == "<All keys matched successfully>"


def test_tied_tensors_share_memory(tmp_path):
    found = load_file(compressed(checkpoints.tied_pth(tmp_path / "m.pth")))
    assert found["lm_head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert load_file(tmp_path / "m.pth")["lm_head.weight"].data_ptr() != 0


MAKERS = {name: getattr(checkpoints, name) for name in dir(checkpoints) if name.endswith(("_pth", "_safetensors"))}


def suffix_of(name: str) -> str:
    return ".pth" if name.endswith("_pth") else ".safetensors"


def expected_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights as torch or safetensors read them."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as theirs

        return theirs(path)
    found = torch.load(path, weights_only=True)
    return found.get("model_state_dict", found)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", MAKERS)
def test_a_plain_file_reads_as_torch_and_safetensors_read_it(tmp_path, name):
    path = MAKERS[name](tmp_path / f"m{suffix_of(name)}")
    expected, found = expected_of(path), load_file(path)
    assert set(found) == set(expected)
    assert not [key for key in expected if not same(found[key], expected[key])]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_compressed_with_keep_reads_the_same(tmp_path, name):
    path = MAKERS[name](tmp_path / f"m{suffix_of(name)}")
    expected, found = expected_of(path), load_file(compressed(path, "keep"))
    assert set(found) == set(expected)
    assert not [key for key in expected if not same(found[key], expected[key])]


def test_the_path_may_be_text(tmp_path):
    assert load_file(str(checkpoints.plain_pth(tmp_path / "m.pth")))


def test_tensors_can_be_written_to(tmp_path):
    for tensor in load_file(compressed(checkpoints.plain_pth(tmp_path / "m.pth"))).values():
        tensor.zero_()


def test_tensors_land_on_the_device_that_was_asked_for(tmp_path):
    found = load_file(compressed(checkpoints.plain_pth(tmp_path / "m.pth")), device="meta")
    assert {tensor.device.type for tensor in found.values()} == {"meta"}


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("kind", ["compressed", "torch"])
def test_a_damaged_file_is_refused(tmp_path, kind, place):
    path = checkpoints.plain_pth(tmp_path / "m.pth")
    path = compressed(path) if kind == "compressed" else path
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ModelzipError, match=path.name):
        load_file(path)


def test_a_file_that_was_cut_is_refused(tmp_path):
    path = compressed(checkpoints.plain_pth(tmp_path / "m.pth"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenCheckpoint, match="download or copy it again"):
        load_file(path)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ModelzipError, match=r"nowhere\.pth: no such file"):
        load_file(tmp_path / "nowhere.pth")
