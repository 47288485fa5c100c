"""What every container must keep: the bits of any tensor, read back by other programs and by ours."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import deserialize

from modelzip_cli.containers.safetensors_file import SafetensorsSink, header_text
from modelzip_cli.containers.torch_zip import TorchSink
from modelzip_cli.source import open_source
from modelzip_cli.tensors import DTYPES, Sink, TensorSpec
from tests.checkpoints import bits_of

SHAPES = ((), (1,), (7,), (0,), (3, 4), (0, 5), (5, 0), (2, 3, 4), (2, 1, 3, 2), (1, 2, 1, 2, 2))
NOT_IN_SAFETENSORS = ("c32", "c128")
NOT_IN_TORCH = tuple(name for name, dtype in DTYPES.items() if dtype.torch is None)
PIECE = 8  # bytes a write: several pieces for most tensors


def arrays(without: tuple[str, ...]) -> dict[TensorSpec, bytes]:
    """A tensor of each shape in each dtype, with any bits."""
    random = np.random.default_rng(0)
    found = {}
    for dtype in DTYPES.values():
        for shape in SHAPES:
            spec = TensorSpec(f"{dtype}.{'x'.join(map(str, shape))}", dtype, shape)
            if dtype.id not in without and spec.size * dtype.bits % 8 == 0:
                found[spec] = random.integers(0, 2 if dtype.id == "bool" else 256, spec.bytes, np.uint8).tobytes()
    return found


def write(sink: Sink, content: dict[TensorSpec, bytes], metadata: dict[str, str]) -> int:
    """Write `content` piece by piece and let the file appear."""
    for spec, data in content.items():
        sink.begin(spec)
        for offset in range(0, len(data), PIECE):
            piece = memoryview(data[offset : offset + PIECE])
            sink.write(spec.name, offset, piece, zlib.crc32(piece))
    size = sink.finish(metadata, None)
    sink.commit()
    return size


def safetensors_file(path: Path, content: dict[TensorSpec, bytes], metadata: dict[str, str]) -> int:
    reserved = len(header_text(content, metadata).encode()) + 17
    return write(SafetensorsSink(path, replace=False, header_bytes=reserved), content, metadata)


def torch_file(path: Path, content: dict[TensorSpec, bytes], metadata: dict[str, str]) -> int:
    return write(TorchSink(path, replace=False), content, metadata)


CONTAINERS = {"safetensors": (safetensors_file, NOT_IN_SAFETENSORS), "torch": (torch_file, NOT_IN_TORCH)}
METADATA = {"format": "pt", "né\n": '"\\\x00 漢字 🙂'}


@pytest.mark.parametrize(("write_file", "without"), CONTAINERS.values(), ids=CONTAINERS)
def test_our_reader_gives_back_every_bit_of_every_dtype_and_rank(tmp_path, write_file, without):
    content = arrays(without)
    size = write_file(tmp_path / "some", content, METADATA)
    assert size == (tmp_path / "some").stat().st_size

    source = open_source(tmp_path / "some")
    try:
        assert [*source.specs.values()] == [*content]
        assert dict(source.metadata) == METADATA
        for spec, data in content.items():
            assert source.read(spec.name, 0, spec.units).tobytes() == data, spec
        source.finish()
    finally:
        source.close()


@pytest.mark.parametrize(("write_file", "without"), CONTAINERS.values(), ids=CONTAINERS)
def test_any_range_of_units_can_be_read(tmp_path, write_file, without):
    content = arrays(without)
    write_file(tmp_path / "some", content, {})
    source = open_source(tmp_path / "some")
    try:
        for spec, data in content.items():
            for start, stop in (
                (0, spec.units // 2),
                (spec.units // 2, spec.units),
                (spec.units // 3, spec.units // 2),
            ):
                width = spec.dtype.unit_bytes
                assert source.read(spec.name, start, stop).tobytes() == data[start * width : stop * width], spec
    finally:
        source.close()


def test_safetensors_reads_the_same_from_our_safetensors_file(tmp_path):
    content = arrays(NOT_IN_SAFETENSORS)
    safetensors_file(tmp_path / "a.safetensors", content, METADATA)
    found = dict(deserialize((tmp_path / "a.safetensors").read_bytes()))
    assert len(found) == len(content)
    for spec, data in content.items():
        entry = found[spec.name]
        assert (bytes(entry["data"]), tuple(entry["shape"]), entry["dtype"]) == (
            data,
            spec.shape,
            spec.dtype.id.upper(),
        )


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_torch_reads_the_same_from_our_torch_file(tmp_path):
    content = arrays(NOT_IN_TORCH)
    torch_file(tmp_path / "a.pth", content, METADATA)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert found.pop("__metadata__") == METADATA
    assert [*found] == [spec.name for spec in content]
    for spec, data in content.items():
        tensor = found[spec.name]
        assert (tuple(tensor.shape), str(tensor.dtype)) == (spec.shape, f"torch.{spec.dtype.torch}")
        assert bits_of(tensor).numpy().tobytes() == data, spec


@pytest.mark.parametrize(("write_file", "without"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_file_without_tensors_or_values_is_still_a_file(tmp_path, write_file, without):
    write_file(tmp_path / "none", {}, {})
    if write_file is safetensors_file:
        source = open_source(tmp_path / "none")
        assert not source.specs
        source.close()
    else:
        assert torch.load(tmp_path / "none", weights_only=True) == {"__metadata__": {}}


@pytest.mark.parametrize(("write_file", "without"), CONTAINERS.values(), ids=CONTAINERS)
def test_the_same_content_gives_the_same_bytes(tmp_path, write_file, without):
    for name in ("one", "two"):
        write_file(tmp_path / name, arrays(without), METADATA)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
