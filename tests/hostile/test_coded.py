"""Entropy-coded files: whatever is flipped, cut or forged, they are refused or decode; in numpy and compiled alike."""

from __future__ import annotations

import copy
import signal
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from modelzip_cli.source import open_source
from tests.checkpoints import weights
from tests.hostile.makers import Model, read_all
from tests.hostile.test_manifests import EVIL, GONE, Native, changed, places

SMALL = (
    "trellis",
    "grid with raw bits",
    "lossless",
    "int4",
    "fixed11",
)  # a bit of every third byte of them is going to be flipped
KINDS = {
    "trellis": ("ecq-s0.6", "auto"),
    "grid with raw bits": ("ecq-s0.02-t1", "auto"),
    "lossless": ("lossless", "auto"),
    "lossless classes": ("lossless", "auto"),
    "int4": ("int4", "rans"),
    "fixed11": ("fixed11", "rans"),
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of some 2 kB (classes take more): paths down and along the rows, a weight that escapes, zeros."""
    folder = tmp_path_factory.mktemp("coded")
    found = {}
    for kind, (scheme, coder) in KINDS.items():
        tensors = {"w": weights(7, 12), "d": weights(9, 4, seed=1), "n": torch.arange(5)}
        tensors["w"][2, 3], tensors["w"][1] = 30.0, 0.0
        if kind == "lossless":
            tensors = {"b": weights(20, 16).bfloat16(), "z": tensors["w"] * (tensors["w"] > 0), "n": tensors["n"]}
        elif scheme == "lossless":
            tensors = {"rows": (weights(64, 70) * torch.logspace(-4, 2, 64)[:, None]).bfloat16()}
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
        found = read_all(path)
        if b'\\"header\\"' in path.read_bytes():
            source = open_source(path)
            found = replace(found, around=source.header)
            source.close()
        return found
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


@pytest.mark.parametrize("kind", SMALL)
def test_a_flipped_byte_of_a_coded_part_is_refused(kind, coded, tmp_path):
    """A bit of every third byte, and of those at the ends of parts: what finds the others is the same checksum."""
    native, path = Native(coded[kind]), tmp_path / "flipped.safetensors"
    whole = coded[kind].read_bytes()
    start = len(whole) - len(native.data)
    parts = [entry["data_offsets"] for name, entry in native.header.items() if name != "__metadata__"]
    ends = {start + place for begin, end in parts for place in (begin, end - 1) if begin < end}
    accepted = []
    for place in sorted({*range(start, len(whole), 3), *ends}):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if not isinstance(outcome(path), str):
            accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize("kind", SMALL)
def test_a_flipped_byte_of_the_header_of_a_coded_file_is_refused_or_changes_nothing(kind, coded, tmp_path):
    native, path = Native(coded[kind]), tmp_path / "flipped.safetensors"
    whole, good = coded[kind].read_bytes(), outcome(coded[kind])
    for place in range(0, len(whole) - len(native.data), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        found = outcome(path)
        assert isinstance(found, str) or found == good, place


@pytest.mark.parametrize("kind", SMALL)
def test_a_coded_file_cut_at_any_length_is_refused(kind, coded, tmp_path):
    whole, path = coded[kind].read_bytes(), tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 11):
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
        begin, end = self.native.header[self._entry(self.native.manifest, owner)["parts"][local]["name"]][
            "data_offsets"
        ]
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
    """`data` with bits flipped, with bytes replaced, cut, and with bytes more; some hundreds of each."""
    step = max(1, len(data) // 200)
    for place in range(0, len(data), step):
        yield data[:place] + bytes([data[place] ^ 1 << place // step % 8]) + data[place + 1 :]
    for place in range(min(len(data), 40)):
        for byte in (0, 1, 127, 128, 255):
            yield data[:place] + bytes([byte]) + data[place + 1 :]
        yield data[:place] + b"\xff" * 5 + data[place + 5 :]
    for length in range(0, len(data), 3 * step):
        yield data[:length]
    for more in (b"\0", b"\0\0", data):
        yield data + more


@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_stream_whose_checksums_are_right_is_refused_or_decodes(kind, coded, tmp_path, kernels):
    forger = Forger(coded[kind])
    crashes, refused = [], 0
    for owner, local in forger.parts:
        for number, data in enumerate(damaged(forger.part(owner, local))):
            if number % (11 if kernels == "numba" else 7):
                continue
            try:
                refused += isinstance(outcome(forger.write(tmp_path / "forged.safetensors", owner, local, data)), str)
            except Exception as error:
                crashes.append(f"{owner}:{local}, forgery {number}: {error!r}")
    assert refused > 30
    assert not crashes, f"{len(crashes)} streams crash the program:\n" + "\n".join(crashes[:20])


FORGED = (
    *EVIL[:12],
    1e-320,
    -0.0,
    "00000000",
    "-0000010",
    "ffffffff",
    ["AA=="],
    "ecq-s0.6",
    "ecq-s4-t1",
    "lossless",
    "rans",
)


@pytest.mark.parametrize("kind", ["trellis", "lossless", "int4"])
def test_a_forged_manifest_of_a_coded_file_is_refused_or_used_without_a_crash(kind, coded, tmp_path):
    native, path = Native(coded[kind]), tmp_path / "forged.safetensors"
    crashes = []
    for place in places(native.manifest):
        if place[0] not in ("tensors", "tables") and "header" not in place:
            continue
        for value in FORGED:
            try:
                with watched():
                    outcome(native.write(path, changed(native.manifest, place, value)))
            except UnicodeEncodeError:
                continue
            except Exception as error:
                shown = "(gone)" if value is GONE else repr(value)[:60]
                crashes.append(f"{'.'.join(map(str, place))} = {shown}: {error!r}")
    assert not crashes, f"{len(crashes)} manifests crash the program:\n" + "\n".join(crashes[:20])


@pytest.mark.parametrize("kind", ["trellis", "grid with raw bits", "lossless", "int4", "tensor"])
@pytest.mark.parametrize(
    "shape", [[1, 2**40], [2**40], [2**40, 1], [2**61, 1], [2**61] * 5, [1024, 2**31], [2, 2**29]], ids=str
)
def test_a_shape_that_a_small_stream_cannot_fill_is_refused_before_memory_is_taken(kind, shape, coded, tmp_path):
    if kind == "tensor":  # nothing else of such a scheme depends on the shape
        save_file({"w": weights(7, 12)}, tmp_path / "source.safetensors")
        recipe, path = Recipe(scheme="binary-tensor", rules=(Rule("w", "binary-tensor"),), coder="rans"), tmp_path / "t"
        path = tmp_path / "tensor.safetensors"
        compress_file(tmp_path / "source.safetensors", path, recipe, Settings(), command="quantize")
    else:
        path = coded[kind]
    native = Native(path)
    name = "w" if "w" in native.manifest["tensors"] else "b"
    forged = native.write(tmp_path / "forged.safetensors", changed(native.manifest, ("tensors", name, "shape"), shape))
    with watched():
        with pytest.raises(ModelzipError):
            read_all(forged)
        with pytest.raises(ModelzipError):
            load_file(forged)


def test_weights_that_would_flood_the_memory_are_not_loaded(coded, monkeypatch):
    monkeypatch.setattr("modelzip_cli.plan.FOREVER", (0, 100))
    with pytest.raises(ModelzipError, match="restore"):
        load_file(coded["trellis"])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("trellis", lambda found: found.update(tables=1)),
        ("trellis", lambda found: found.update(tables=-1)),
        ("trellis", lambda found: found.update(tables=True)),
        ("trellis", lambda found: found.pop("tables")),
        ("trellis", lambda found: found.update(scheme="ecq-s0.6-t1")),
        ("trellis", lambda found: found.update(coder="bitpack")),
        ("trellis", lambda found: found.update(coder="lossless", scheme="lossless")),
        ("trellis", lambda found: found["parts"]["codes"].update(bytes="")),
        ("trellis", lambda found: found["parts"]["codes"].update(bytes="ffffffff")),
        ("trellis", lambda found: found["parts"]["codes"].update(bytes="-0000001" + "00000200", crc32="0" * 16)),
        ("lossless", lambda found: found.update(coder="rans")),
        ("lossless", lambda found: found.update(dtype="u32")),
        ("int4", lambda found: found.update(coder="bitpack")),
        ("int4", lambda found: found.update(coder="lossless")),
        ("int4", lambda found: found.update(scheme="int5-g128")),
    ],
)
def test_an_entry_that_does_not_fit_its_stream_is_refused_or_gives_other_values(kind, change, coded, tmp_path):
    """A name such as int5 for int4 says nothing that a reader could hold against the stream; it reads, as something."""
    native = Native(coded[kind])
    manifest = copy.deepcopy(native.manifest)
    change(manifest["tensors"]["w" if kind != "lossless" else "z"])
    found = outcome(native.write(tmp_path / "forged.safetensors", manifest))
    assert isinstance(found, str) or "int5" in str(manifest) or "u32" in str(manifest)


def forged_set(found: Tables, forge: Any) -> str:
    frequencies = found.frequencies.copy()
    return b64encode(forge(write_set(Tables(frequencies, found.span)))).decode()


@pytest.mark.parametrize(
    "forge",
    [
        lambda data: data[:-1],
        lambda data: data + b"\1",
        lambda data: b"\3" + data[1:],
        lambda data: b"\0" + data[1:],
        lambda data: b"\1" + data[1:],  # tables of a grid, one a class
        lambda data: bytes([2, 39]) + data[2:],
        lambda data: bytes([2, data[1], 255]) + data[3:],
        lambda data: data[:3] + b"\x00\xff\x7f" + data[5:],
        lambda data: data[:3] + b"\xff\x01\x7f" + data[5:],
        lambda data: data[:3] + b"\x80\x80\x80\x80\x80\x80" + data[3:],
        lambda data: b"",
    ],
)
def test_a_forged_set_of_tables_is_refused(forge, coded, tmp_path):
    native = Native(coded["trellis"])
    text = native.manifest["tables"][0]
    assert forged_set(read_set(b64decode(text)), lambda data: data) == text
    forged = changed(native.manifest, ("tables", 0), forged_set(read_set(b64decode(text)), forge))
    with pytest.raises(ModelzipError):
        read_all(native.write(tmp_path / "forged.safetensors", forged))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0, -0.0, 3e38])
def test_a_step_that_is_no_step_is_refused_without_a_word_of_numpy(value, coded, tmp_path, recwarn):
    import numpy as np

    forger = Forger(coded["trellis"])
    path = forger.write(tmp_path / "forged.safetensors", "w", "step", np.float32(value).tobytes())
    assert isinstance(outcome(path), str)
    assert not recwarn.list


def test_frequencies_that_are_too_high_for_an_entry_of_the_decoder_are_refused(coded, tmp_path):
    """One symbol with all of 2^11 would not fit 12 bits."""
    forger = Forger(coded["int4"])
    for data in (bytes([0, 0, 128, 16]), bytes([0, 0, 0]), bytes([0, 1, 255, 15, 2]), bytes([0, 254, *[1] * 255])):
        stream = data + bytes(4 * 12 + 2)
        path = forger.write(tmp_path / "forged.safetensors", "w", "codes", stream)
        assert "cannot be decoded" in str(outcome(path))
    assert TOTAL == 2048


def test_a_tensor_that_is_called_header_is_not_taken_for_the_header_of_its_source(tmp_path):
    source, output, back = (tmp_path / f"{name}.safetensors" for name in ("source", "small", "back"))
    save_file({"header": torch.arange(100, dtype=torch.uint8)}, source)
    compress_file(source, output, Recipe(scheme="lossless"), Settings(), command="compress")
    restore_file(output, back, Settings(), dtype=None, most_bytes=None)
    assert back.read_bytes() == source.read_bytes()
