"""A damaged compressed file is refused or decodes to what it always did: nothing in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelzip_cli.errors import ModelzipError
from tests.hostile.makers import read_all


@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_a_flipped_bit_is_refused_or_changes_nothing(container, tiny, tmp_path):
    """Every bit of a safetensors file; three bits of every byte of a torch file, most of which checksums cover."""
    good = read_all(tiny[container])
    data, path = bytearray(tiny[container].read_bytes()), tmp_path / tiny[container].name
    refused, changed = 0, []
    with path.open("wb", buffering=0) as file:
        file.write(data)
        for place in range(len(data)):
            for bit in range(8) if container == "safetensors" else {0, 5, place % 8}:  # 5: small letters and capitals
                write_at(file, place, data[place] ^ 1 << bit)
                try:
                    if read_all(path) != good:
                        changed.append((place, bit))
                except ModelzipError:
                    refused += 1
            write_at(file, place, data[place])
    assert not changed, f"{len(changed)} flips read as another model, the first at (byte, bit) {changed[0]}"
    flips = 8 if container == "safetensors" else 3
    assert refused > flips / 2 * len(data)  # most bits matter; zip padding and time stamps do not


@pytest.mark.parametrize("container", ["safetensors", "torch", "native-safetensors", "native-torch"])
def test_a_file_cut_at_any_length_is_refused(container, honest, tmp_path):
    whole = honest[container].read_bytes()
    path = tmp_path / honest[container].name
    path.write_bytes(whole)
    read_all(path)  # whole, it is fine
    accepted = []
    for length in reversed(range(len(whole))):
        with path.open("r+b") as file:
            file.truncate(length)
        try:
            read_all(path)
            accepted.append(length)
        except ModelzipError:
            pass
    assert accepted == []


def write_at(file, place: int, byte: int) -> None:
    file.seek(place)
    file.write(bytes([byte]))


@pytest.mark.parametrize("container", ["safetensors", "torch", "native-safetensors", "native-torch"])
def test_bytes_after_the_end_are_refused(container, honest, tmp_path):
    path = tmp_path / honest[container].name
    path.write_bytes(honest[container].read_bytes() + b"\0")
    with pytest.raises(ModelzipError):
        read_all(path)


def test_a_damaged_weight_of_an_ordinary_torch_file_is_refused_by_name(honest, tmp_path):
    data = bytearray(honest["torch"].read_bytes())
    place = data.index(read_all(honest["torch"]).tensors["layer.bias"][2])
    data[place] ^= 1
    path = Path(tmp_path, "bit-rot.pth")
    path.write_bytes(data)
    with pytest.raises(ModelzipError, match=r"tensor layer\.bias: its checksum does not match"):
        read_all(path)
