"""Entropy-coded files: whatever is flipped, cut or forged, they are refused or decode; in numpy and compiled alike."""

from __future__ import annotations

import copy
import signal
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli import load_file
from modelzip_cli.coders.tables import TOTAL, Tables, read_set, write_set
from modelzip_cli.errors import ModelzipError
from modelzip_cli.kernels import jit
from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.single import Settings, compress_file, restore_file
from tests.checkpoints import weights
from tests.hostile.makers import Model, read_all
from tests.hostile.test_manifests import EVIL, GONE, Native, changed, places

KINDS = {
    "trellis": ("ecq-s0.6", "auto"),
    "grid with raw bits": ("ecq-s0.02-t1", "auto"),
    "lossless": ("lossless", "auto"),
    "int4": ("int4", "rans"),
    "fixed11": ("fixed11", "rans"),
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of some 2 kB: paths down and along the rows, a weight that escapes, zeros."""
    folder = tmp_path_factory.mktemp("coded")
    found = {}
    for kind, (scheme, coder) in KINDS.items():
        tensors = {"w": weights(7, 12), "d": weights(9, 4, seed=1), "n": torch.arange(5)}
        tensors["w"][2, 3], tensors["w"][1] = 30.0, 0.0
        if kind == "lossless":
            tensors = {"b": tensors["w"].bfloat16(), "z": tensors["w"] * (tensors["w"] > 0), "n": tensors["n"]}
            tensors["many"] = weights(1, 1200).bfloat16()
        save_file(tensors, folder / "source.safetensors")
        rules = tuple(Rule(name, scheme) for name in ("w", "d") if name in tensors)
        found[kind] = folder / f"{kind}.safetensors"
        recipe = Recipe(scheme=scheme, rules=rules, coder=coder)
        compress_file(folder / "source.safetensors", found[kind], recipe, Settings(), command="quantize")
    return found


@pytest.fixture(params=["numpy", "numba"])
def kernels(request, monkeypatch) -> str:
    """Run with these kernels, whatever the rest of the tests run with."""
    monkeypatch.setenv("MODELZIP_KERNELS", request.param)
    monkeypatch.setattr(jit._Work, "numba", None)
    return str(request.param)


def outcome(path: Path) -> Model | str:
    """What reading gives: all that the file holds, or why it is refused."""
    try:
        return read_all(path)
    except ModelzipError as error:
        return str(error)


@contextmanager
def watched() -> Iterator[None]:
    """Fail instead of hanging."""

    def give_up(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_of_a_coded_part_is_refused(kind, coded, tmp_path):
    native, path = Native(coded[kind]), tmp_path / "flipped.safetensors"
    whole = coded[kind].read_bytes()
    accepted = []
    for place in range(len(whole) - len(native.data), len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                read_all(path)
                accepted.append((place, bit))
            except ModelzipError:
                pass
    assert accepted == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_of_the_header_of_a_coded_file_is_refused_or_changes_nothing(kind, coded, tmp_path):
    native, path = Native(coded[kind]), tmp_path / "flipped.safetensors"
    whole, good = coded[kind].read_bytes(), read_all(coded[kind])
    for place in range(len(whole) - len(native.data)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        found = outcome(path)
        assert isinstance(found, str) or found == good, place


@pytest.mark.parametrize("kind", KINDS)
def test_a_coded_file_cut_at_any_length_is_refused(kind, coded, tmp_path):
    whole, path = coded[kind].read_bytes(), tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        assert isinstance(outcome(path), str)


class Forger:
    """Replaces the bytes of a part, and makes every size and checksum right again."""

    def __init__(self, path: Path) -> None:
        self.native = Native(path)
        entries = {**self.native.manifest["tensors"], "header": self.native.manifest["source"].get("header", {})}
        self.parts = [
            (owner, local) for owner, entry in entries.items() for local in entry.get("parts", {}) if local != "raw"
        ]

    def part(self, owner: str, local: str) -> bytes:
        begin, end = self.native.header[self._entry(self.native.manifest, owner)["parts"][local]["name"]]["data_offsets"]
        return self.native.data[begin:end]

    def _entry(self, manifest: Any, owner: str) -> Any:
        return manifest["tensors"][owner] if owner in manifest["tensors"] else manifest["source"]["header"]

    def write(self, path: Path, owner: str, local: str, data: bytes) -> Path:
        forged, manifest = copy.copy(self.native), copy.deepcopy(self.native.manifest)
        part = self._entry(manifest, owner)["parts"][local]
        begin, end = self.native.header[part["name"]]["data_offsets"]
        forged.header = {}
        for name, value in self.native.header.items():
            if name != "__metadata__" and value["data_offsets"][0] >= begin:
                first, last = value["data_offsets"]
                more = len(data) - (end - begin)
                offsets = [first + more, last + more] if name != part["name"] else [begin, begin + len(data)]
                value = {**value, "data_offsets": offsets}
                if name == part["name"] and len(data) != end - begin:
                    value["shape"] = [len(data)]
            forged.header[name] = value
        forged.data = self.native.data[:begin] + data + self.native.data[end:]
        part["crc32"] = f"{zlib.crc32(data):08x}"
        if "bytes" in part:
            part["bytes"] = f"{len(data):08x}"
        return forged.write(path, manifest)


def damaged(data: bytes) -> Iterator[bytes]:
    """`data` with every bit flipped, with some bytes replaced, cut, and with bytes more."""
    for place in range(min(len(data), 260)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    for place in range(min(len(data), 60)):
        for byte in (0, 1, 127, 128, 255):
            yield data[:place] + bytes([byte]) + data[place + 1 :]
        yield data[:place] + b"\xff" * 5 + data[place + 5 :]
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"
    yield data + b"\0\0"
    yield data + data


@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_stream_whose_checksums_are_right_is_refused_or_decodes(kind, coded, tmp_path, kernels):
    forger = Forger(coded[kind])
    crashes, refused = [], 0
    for owner, local in forger.parts:
        for number, data in enumerate(damaged(forger.part(owner, local))):
            if kernels == "numba" and number % 7:
                continue
            try:
                refused += isinstance(outcome(forger.write(tmp_path / "forged.safetensors", owner, local, data)), str)
            except Exception as error:
                crashes.append(f"{owner}:{local}, forgery {number}: {error!r}")
    assert refused > 50
    assert not crashes, f"{len(crashes)} streams crash the program:\n" + "\n".join(crashes[:20])
