"""The manifest of a compressed file is untrusted: whatever stands in it, the program refuses or decodes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelzip_cli.cli.inspect import inspect
from modelzip_cli.errors import ModelzipError
from modelzip_cli.layouts.native import DIGEST, KEY
from modelzip_cli.single import Settings, restore_file
from modelzip_cli.source import open_source
from tests.hostile.makers import read_all, safetensors_of

GONE = object()  # the key or item is removed
EVIL = (
    GONE,
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    "",
    "x" * 1000,
    "\ud800",
    [],
    {},
    [["w", "b"]],
    "w",
    "w:codes",
    "int3-g2",
    {"$": "weights", "kind": "dict", "others": [], "metadata": None},
    {"$": "tensor", "name": "nowhere"},
    {"$": "tuple", "items": [{"$": "call", "name": "torch.Size", "arguments": [{"$": "tensor", "name": "nowhere"}]}]},
    {"$": "dict", "items": [[{"$": "tensor", "name": "nowhere"}, 1]]},
)


class Native:
    """A compressed safetensors file with a manifest that can be changed."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.header, self.data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        self.text = self.header["__metadata__"][KEY]
        self.manifest = json.loads(self.text)

    def write(self, path: Path, manifest: Any, *, sealed: bool = True) -> Path:
        """Write the file with `manifest`, JSON values or text; `sealed`: with the checksum that belongs to it."""
        written = manifest if isinstance(manifest, str) else json.dumps(manifest)
        metadata = dict(self.header["__metadata__"]) | {KEY: written}
        if sealed:
            metadata[DIGEST] = hashlib.sha256(written.encode()).hexdigest()
        path.write_bytes(safetensors_of(self.header | {"__metadata__": metadata}, self.data))
        return path


@pytest.fixture(scope="module")
def native(honest) -> Native:
    return Native(honest["native-safetensors"])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    if path:
        yield path
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        yield from places(inside, (*path, key))


def changed(manifest: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of `manifest` with `value` at `path`."""
    found = inside = copy.deepcopy(manifest)
    for key in path[:-1]:
        inside = inside[key]
    if value is GONE:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return found


def use(path: Path, restored: Path | None) -> None:
    """All that a user would do with the file: look at it, read it, restore it to torch unless `restored` is None."""
    with contextlib.redirect_stdout(io.StringIO()):
        inspect([path], form="plain", verbose=True)
    read_all(path)
    if restored is not None:
        restore_file(path, restored, Settings(force=True), dtype=None, most_bytes=1 << 20)


def test_a_changed_manifest_without_its_checksum_is_refused(tiny, tmp_path):
    native = Native(tiny["safetensors"])
    accepted = []
    for path in places(native.manifest):
        for value in (GONE, None, -1, "", []):
            file = native.write(tmp_path / "changed.safetensors", changed(native.manifest, path, value), sealed=False)
            try:
                open_source(file).close()
                accepted.append((path, value))
            except ModelzipError:
                pass
    assert accepted == []


def test_a_forged_manifest_is_refused_or_used_without_a_crash(tiny, tmp_path):
    native = Native(tiny["safetensors"])
    crashes = []
    for path in places(native.manifest):
        for value in EVIL:
            try:
                file = native.write(tmp_path / "forged.safetensors", changed(native.manifest, path, value))
            except UnicodeEncodeError:  # a lone surrogate that json.dumps did not escape: no such file can be
                continue
            try:
                use(file, tmp_path / "restored.pth" if path[0] == "outer" or value is GONE else None)
            except ModelzipError:
                pass
            except Exception as error:
                shown = "(gone)" if value is GONE else repr(value)[:100]
                crashes.append(f"{'.'.join(map(str, path))} = {shown}: {error!r}")
    shown = "\n".join(crashes[:40])
    assert not crashes, f"{len(crashes)} manifests crash the program:\n{shown}"


@pytest.mark.parametrize(
    "tree",
    [
        '{"$": "weights", "kind": "dict", "others": [[1e999, "a", 1]], "metadata": null}',
        '{"$": "weights", "kind": "dict", "others": [[99999999999999999999, "a", 1]], "metadata": null}',
        '{"$": "weights", "kind": "dict", "others": [[-5, "a", 1]], "metadata": null}',
        '{"$": "weights", "kind": "tensor", "others": [], "metadata": null}',
        '{"$": "weights", "kind": "dict", "others": [[0, {"$": "tensor", "name": "nowhere"}, 1]], "metadata": null}',
        '{"$": "weights", "kind": "dict", "others": [[0, "w", 1]], "metadata": {"$": "tensor", "name": "nowhere"}}',
        '{"$": "complex", "parts": [1e999, {}]}',
        '{"$": "set", "items": [{"$": "weights", "kind": "dict", "others": [], "metadata": null}]}',
        '{"$": "call", "name": "os.system", "arguments": ["true"]}',
        '{"$": "global", "name": "os.system"}',
        '{"w": {"$": "weights", "kind": "dict", "others": [], "metadata": null}, "n": 1e999}',
    ],
)
def test_a_forged_tree_is_refused_or_used_without_a_crash(tree, native, tmp_path):
    place = json.dumps(native.manifest["outer"]["tree"])
    text = json.dumps(native.manifest)
    assert place in text
    file = native.write(tmp_path / "forged.safetensors", text.replace(place, tree))
    try:
        use(file, tmp_path / "restored.pth")
    except ModelzipError:
        assert not (tmp_path / "restored.pth").exists()


@pytest.mark.parametrize("around", [("[", "]"), ('{"a":', "}"), ('{"$": "tuple", "items": [', "]}")])
@pytest.mark.parametrize("depth", [50, 150, 180, 210, 240, 320, 450, 900, 100_000])
def test_nesting_of_any_depth_is_refused_or_used_without_a_crash(depth, around, native, tmp_path):
    begin, end = around
    weights = '{"$": "weights", "kind": "dict", "others": [], "metadata": null}'
    tree = f'{{"w": {weights}, "deep": {begin * depth}1{end * depth}}}'
    text = json.dumps(native.manifest).replace(json.dumps(native.manifest["outer"]["tree"]), tree)
    file = native.write(tmp_path / "deep.safetensors", text)
    try:
        use(file, tmp_path / "restored.pth")
    except ModelzipError:
        assert not (tmp_path / "restored.pth").exists()


def test_names_that_are_no_text_are_refused(native, tmp_path):
    outer = native.manifest["outer"]
    forged = changed(native.manifest, ("outer", "ties"), [["tied.weight", "layer.weight"], [1, "layer.weight"]])
    forged = changed(forged, ("outer", "names"), [*outer["names"], 1])
    with pytest.raises(ModelzipError):
        read_all(native.write(tmp_path / "forged.safetensors", forged))


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("outer", "ties", "tied.weight"), "tied.weight", "points to no tensor"),
        (("outer", "ties", "counter"), "layer.weight", "appears twice"),
        (("outer", "names"), ["layer.weight", "layer.weight"], "appears twice"),
        (("tensors", "layer.bias", "shape"), [2**61], "ask"),
        (("tensors", "layer.bias", "shape"), [2**40, 2**40, 2**40], "ask"),
        (("tensors", "counter", "dtype"), "f64", "asks for"),
        (("tensors", "layer.weight", "scheme"), "int4-g16-asym", "asks for"),
        (("tensors", "layer.weight", "scheme"), "int4-g-1", "manifest"),
        (("tensors", "layer.weight", "scheme"), "os.system", "no scheme"),
        (("tensors", "layer.weight", "coder"), "os.system", "not coded by"),
        (("tensors", "layer.weight", "parts", "codes", "name"), "layer.bias", "used twice|not what its shape"),
        (("tensors", "layer.weight", "parts", "codes", "crc32"), "0" * 16, "number of checksums"),
        (("tensors", "layer.weight", "parts", "codes", "crc32"), "0" * 8, "does not match its checksum"),
        (("format_version",), 2, "update modelzip"),
        (("format_version",), True, "no format version"),
        (("format_version",), 1.0, "no format version"),
    ],
)
def test_a_manifest_that_does_not_fit_its_arrays_is_refused_with_the_reason(path, value, what, native, tmp_path):
    with pytest.raises(ModelzipError, match=what):
        read_all(native.write(tmp_path / "forged.safetensors", changed(native.manifest, path, value)))


def test_an_array_that_no_tensor_uses_is_refused(native, tmp_path):
    forged = copy.deepcopy(native.manifest)
    del forged["tensors"]["counter"]
    forged["outer"]["names"].remove("counter")
    with pytest.raises(ModelzipError, match="counter belongs to no tensor"):
        read_all(native.write(tmp_path / "forged.safetensors", forged))


@pytest.mark.parametrize(("part", "dtype"), [("layer.weight:scale", "<u2"), ("last.weight:scale", "<f4")])
def test_a_scale_that_is_not_finite_is_refused_though_its_checksum_fits(part, dtype, native, tmp_path):
    import zlib

    import numpy as np

    begin, end = native.header[part]["data_offsets"]
    values = np.frombuffer(native.data[begin:end], dtype).copy()
    values[0] = np.nan if dtype == "<f4" else 0x7F80
    forged = copy.deepcopy(native)
    forged.data = native.data[:begin] + values.tobytes() + native.data[end:]
    owner, _, local = part.partition(":")
    sums = ("tensors", owner, "parts", local, "crc32")
    manifest = changed(native.manifest, sums, f"{zlib.crc32(values.tobytes()):08x}")
    with pytest.raises(ModelzipError, match="scale is not finite"):
        read_all(forged.write(tmp_path / "forged.safetensors", manifest))
