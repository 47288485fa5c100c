"""docs/format.md says what the files are: its decoder gives what modelzip restores, its tables and examples hold."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli import load_file
from modelzip_cli.amounts import Depth, Pruning
from modelzip_cli.coders import CODERS
from modelzip_cli.containers.tree import _TAGGED, from_json, to_json
from modelzip_cli.errors import ModelzipError
from modelzip_cli.kernels.bitpack import pack
from modelzip_cli.layouts.native import native_parts
from modelzip_cli.recipe import Goal, Recipe, Rule
from modelzip_cli.schemes import SCHEMES, parse_scheme
from modelzip_cli.single import Aid, Settings, compress_file, restore_file
from modelzip_cli.source import open_source
from modelzip_cli.tensors import DTYPES, TensorSpec
from tests.checkpoints import (
    bf16_safetensors,
    bits_of,
    every_dtype_pth,
    every_dtype_safetensors,
    odd_names_pth,
    small_and_empty_pth,
    tied_pth,
    trainer_pth,
    weights,
)
from tests.measured import statistics_file

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
DECODER = ROOT / "docs" / "format" / "decode.py"

SHAPES = {
    "matrix": (24, 320),
    "columns not a multiple of 8 or of a group": (7, 603),
    "convolution": (16, 8, 5, 5),
    "experts": (3, 20, 72),
    "rank 3 with short rows": (20, 9, 31),
    "one column": (4200, 1),
    "vector": (5000,),
}
LARGE = "several slabs", (5, 131_072 + 5)  # some schemes: how slabs are cut does not depend on them
DTYPES_OF_WEIGHTS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
NAMES = [
    *("int8", "int8-asym", "int8-mse", "int8-tensor", "int8-g32", "int4", "int4-g64", "int4-g64-asym", "int3-g7"),
    *("int3-g100-mse", "int2-g1", "int5-channel-asym-mse", "int6-tensor-asym", "int7-g600", "int4-g999999999"),
    *("fixed8", "fixed8-mse", "fixed4-channel", "fixed5-channel-mse", "fixed12", "fixed16", "fixed9-n7", "fixed16-n-3"),
    *("binary", "binary-tensor", "binary-g64", "binary-m2", "binary-m2-g7", "binary-m2-tensor"),
    *("ternary", "ternary-tensor", "ternary-g100", "nf4", "nf4-g7", "fp8", "fp8-tensor"),
    *(f"codebook{bits}" for bits in range(1, 9)),
    *("ecq-s0.15", "ecq-s0.01", "ecq-s3", "ecq-s0.25-t1", "ecq-s0.01-t1", "lossless"),
    *("fp16", "bf16", "fp32"),
]
OPEN = [name for name in NAMES if name.startswith("ecq")]
CODED = [  # with `--coder rans`
    *("int8", "int4-g64-asym", "int2-g1", "fixed5-channel-mse", "fixed9-n7", "fixed16", "binary", "binary-m2-g7"),
    *("ternary-g100", "nf4", "fp8", "codebook3"),
]
FEW = [
    *(
        "int8",
        "int4-g64-asym",
        "int2-g1",
        "int6-tensor-asym",
        "fixed5-channel-mse",
        "fixed16",
        "binary",
        "binary-m2-g7",
    ),
    *("ternary", "nf4", "fp8", "codebook3", "lossless", *NAMES[-3:]),
]
SCHEME_BITS = {name: parse_scheme(name).bits for name in NAMES} | {"int2-g1": 18}  # of a weight, or a little less


@pytest.fixture(scope="module")
def decoder() -> Any:
    """docs/format/decode.py as a module, from a place that gives it nothing of ours."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("decode", DECODER)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compress(source: Path, scheme: str, **options: Any) -> Path:
    """The native file of `source`."""
    output = source.with_name(f"{source.stem}.{scheme}.safetensors")
    compress_file(source, output, Recipe(scheme=scheme, **options), Settings(), command="quantize")
    return output


@cache
def weights_of(dtype: torch.dtype, large: bool) -> dict[str, torch.Tensor]:
    """A tensor of every shape, with zeros in it and one group of nothing else."""
    tensors = {}
    for seed, (name, shape) in enumerate([*SHAPES.items(), *[LARGE] * large]):
        values = weights(*shape, seed=seed)
        values[values.abs() < 1e-3] = 0
        values.reshape(-1)[:64] = 0
        tensors[name] = values.to(dtype)
    return tensors


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest of a native safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return json.loads(header["__metadata__"]["modelzip"])


def assert_same(decoded: dict[str, np.ndarray], path: Path) -> None:
    """Compare what decode.py gives with what modelzip restores, bit for bit."""
    restored, entries = load_file(path), manifest_of(path)["tensors"]
    assert [name for name in decoded if name in restored] == list(restored)
    for name, tensor in restored.items():
        array = decoded[name]
        if entries.get(name, {}).get("scheme", "lossless") != "lossless":
            assert array.dtype == np.float32
            array_bits = bits_of(torch.from_numpy(array.copy()).to(tensor.dtype)).numpy()
        elif tensor.dtype == torch.bfloat16:
            array_bits = bits_of(torch.from_numpy(array.copy()).bfloat16()).numpy()
        else:
            array_bits = np.frombuffer(array.tobytes(), np.uint8)
        assert array.shape == tuple(tensor.shape), name
        assert np.array_equal(array_bits, bits_of(tensor).numpy()), name


@pytest.mark.parametrize(
    ("dtype", "scheme", "coder"),
    [
        *(("f32", name, "auto") for name in NAMES if name not in OPEN),
        *(("f32", name, "rans") for name in CODED),
        *((dtype, name, "auto") for dtype in ("bf16", "f16", "f64") for name in FEW),
    ],
)
def test_the_decoder_of_the_page_gives_what_modelzip_restores(
    decoder: Any, tmp_path: Path, dtype: str, scheme: str, coder: str
) -> None:
    source = tmp_path / "model.safetensors"
    large = scheme in (CODED[:4] if coder == "rans" else FEW) and dtype in ("f32", "bf16")
    save_file(weights_of(DTYPES_OF_WEIGHTS[dtype], large), source)
    path = compress(source, scheme, rules=(Rule("vector", scheme),), coder=coder)
    treated = [entry for entry in manifest_of(path)["tensors"].values() if "scheme" in entry]
    assert treated or DTYPES[dtype].bits <= SCHEME_BITS[scheme]
    assert_same(decoder.decode(path), path)


@cache
def open_weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Paths down and along the rows, one and two slabs, rows and columns of different scale, zeros and outliers."""
    shapes = {"down": (280, 40), "along": (20, 90), "two slabs": (1030, 3), "row": (1, 300), "column": (30, 1)}
    found = {name: weights(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    found["rows"] = weights(64, 70, seed=5) * torch.logspace(-3, 1, 64)[:, None]
    found["columns"] = weights(70, 64, seed=6) * torch.logspace(-2, 1, 64)
    found["sparse"] = weights(64, 70, seed=7) * (weights(64, 70, seed=8) > 0.03)
    found["zeros"] = torch.zeros(8, 40)
    for name, most in (("outliers", 60.0), ("far outliers", 3000.0)):
        found[name] = weights(70, 64, seed=9)
        found[name][3, 5], found[name][60, 63] = most, -most
    found["far outliers along"] = found["far outliers"].T.contiguous()
    return {name: tensor.to(dtype) for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [*(("f32", name) for name in OPEN), *((d, OPEN[0]) for d in ("bf16", "f16", "f64")), ("bf16", OPEN[-1])],
)
def test_the_decoder_of_the_page_gives_the_points_of_ecq(decoder: Any, tmp_path: Path, dtype: str, scheme: str) -> None:
    source = tmp_path / "model.safetensors"
    tensors = open_weights(DTYPES_OF_WEIGHTS[dtype])
    save_file(tensors, source)
    path = compress(source, scheme, rules=tuple(Rule(name, scheme) for name in tensors))
    entries = manifest_of(path)["tensors"]
    assert all(entries[name]["scheme"] == scheme for name in tensors if name not in ("zeros", "column", "row"))
    assert len(entries["two slabs"]["parts"]["codes"]["bytes"]) == 16
    assert_same(decoder.decode(path), path)


def test_a_lossless_file_gives_the_bits_and_the_header_of_its_source(
    decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of plane, zeros with a symbol of their own, every dtype, NaN with a payload, two slabs."""
    kinds, whole = set(), decoder.Planes.plane

    def plane(self: Any, size: int, **options: Any) -> Any:
        kinds.add(self.stream.data[self.stream.place])
        return whole(self, size, **options)

    monkeypatch.setattr(decoder.Planes, "plane", plane)
    every_dtype_safetensors(tmp_path / "all.safetensors")
    nan = torch.tensor([0x7FC00001, 0x7F800123, -2147483648, 1], dtype=torch.int32).view(torch.float32)
    scaled = weights(300, 100, seed=3) * torch.logspace(-4, 2, 300)[:, None]
    tensors = {
        "nan": nan,
        "half": weights(64, 100).half(),
        "rows": scaled.bfloat16(),
        "sparse": (weights(64, 100, seed=4) * (weights(64, 100, seed=5) > 0.02)).bfloat16(),
        "dead": weights(64, 100, seed=6).bfloat16().float(),
        "double": weights(40, 30, seed=7).double(),
        "complex": torch.complex(weights(16, 100), weights(16, 100, seed=1)),
        "constant": torch.full((70, 70), -1.5),
        "counts": torch.arange(-3000, 3000).reshape(60, 100),
        "bytes": torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 200_000), np.uint8)),
        "small": weights(48, 64).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "many.safetensors", metadata={"format": "pt"})
    for name in ("all", "many"):
        source = tmp_path / f"{name}.safetensors"
        path = compress(source, "lossless")
        decoded, header = decoder.read(path)
        assert_same(decoded, path)
        whole_file = source.read_bytes()
        assert header == whole_file[8 : 8 + int.from_bytes(whole_file[:8], "little")]
    assert kinds == {0, 1, 2, 3}


def test_every_scheme_of_the_table_is_among_them() -> None:
    assert {parse_scheme(name).id for name in NAMES} == set(SCHEMES)


SOURCES: dict[str, Callable[[Path], Path]] = {
    "tied.pth": tied_pth,
    "trainer.pth": trainer_pth,
    "small.pth": small_and_empty_pth,
    "dtypes.pth": every_dtype_pth,
    "dtypes.safetensors": every_dtype_safetensors,
    "names.pth": odd_names_pth,
    "bf16.safetensors": bf16_safetensors,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("keep_extras", [False, True], ids=["weights only", "with extras"])
def test_the_decoder_reads_every_kind_of_source(decoder: Any, tmp_path: Path, source: str, keep_extras: bool) -> None:
    path = compress(SOURCES[source](tmp_path / source), "int4-g64", keep_extras=keep_extras)
    decoded = decoder.decode(path)
    assert set(decoded) >= set(manifest_of(path)["tensors"])
    assert_same(decoded, path)


def test_the_length_of_a_header_does_not_make_a_file_something_else(tmp_path: Path) -> None:
    """A file begins with that length, and 640 is `80 02`, as a pickle begins; 35,615 is `1f 8b`, as gzip does."""
    for length in (0x0280, 0x0380, 0x0480, 0x0580, 0x8B1F):
        text = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        path = tmp_path / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + text + bytes(4))
        assert load_file(path)["w"].tolist() == [0.0]


def test_tied_names_are_one_array(decoder: Any, tmp_path: Path) -> None:
    decoded = decoder.decode(compress(tied_pth(tmp_path / "tied.pth"), "int8"))
    assert decoded["lm_head.weight"] is decoded["embed.weight"]


def test_tensors_beside_the_weights_are_decoded_under_their_names(decoder: Any, tmp_path: Path) -> None:
    decoded = decoder.decode(compress(trainer_pth(tmp_path / "trainer.pth"), "int8", keep_extras=True))
    assert torch.equal(torch.from_numpy(decoded["optimizer.state.0.exp_avg"].copy()), weights(96, 64, seed=7))


def test_a_name_that_a_part_would_have_is_found_through_the_manifest(decoder: Any, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    clash = {"w": weights(64, 64), "w:codes": weights(64, 64, seed=1), "w:scale": weights(3), "w:scale'": weights(2)}
    save_file(clash, source)
    path = compress(source, "int4-g64")
    assert {"w:scale''", "w:codes'"} <= {part["name"] for part in manifest_of(path)["tensors"]["w"]["parts"].values()}
    assert_same(decoder.decode(path), path)


def test_the_decoder_notices_every_damaged_byte(decoder: Any, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"w": weights(64, 64), "bias": weights(5), "n": torch.tensor(3)}, source, metadata={"format": "pt"})
    path = compress(source, "int2-g64-asym")
    whole, damaged = path.read_bytes(), tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    spaces = len(whole[:header]) - len(whole[:header].rstrip(b" "))
    names = [whole.index(name) + 1 for name in (b'"format":"pt"', b'"pt"')]  # what the source's own metadata say
    places = [*range(0, header - spaces, 7), *range(header, len(whole), 3)]
    for place in places:
        if names[0] <= place < names[1] + 2:
            continue
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        damaged.write_bytes(changed)
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            decoder.decode(damaged)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheme", "int4-g32-asym"),
        ("scheme", "int9"),
        ("scheme", "int4-g64-asym-new"),
        ("coder", "rans"),
        ("shape", [64, 65]),
        ("shape", [64, -64]),
        ("dtype", "i32"),
        ("parts", {}),
    ],
)
def test_the_decoder_refuses_a_manifest_that_does_not_fit_its_arrays(
    decoder: Any, tmp_path: Path, key: str, value: Any
) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"w": weights(64, 64)}, source)
    path = compress(source, "int4-g64-asym")

    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"]["w"][key] = value

    rewrite(path, change)
    with pytest.raises(ValueError, match="tensor w: "):
        decoder.decode(path)


def test_the_decoder_refuses_a_newer_format_and_ignores_keys_that_it_does_not_know(
    decoder: Any, tmp_path: Path
) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"w": weights(64, 64)}, source)
    path = compress(source, "int8")
    rewrite(path, lambda manifest: manifest.update(new=1))
    assert_same(decoder.decode(path), path)
    rewrite(path, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(ValueError, match="newer format"):
        decoder.decode(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_weight_called_like_the_metadata_does_not_replace_the_manifest(tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / "model.pth", tmp_path / f"small{suffix}"
    torch.save({"__metadata__": weights(3), "w": weights(64, 64)}, source)
    try:
        compress_file(source, output, Recipe(), Settings(), command="quantize")
    except ModelzipError:
        assert not output.exists()
    else:
        assert set(load_file(output)) == {"__metadata__", "w"}
        assert load_file(output)["__metadata__"].equal(weights(3))


def test_the_same_source_gives_the_same_bytes_whatever_the_order_of_a_set(installed: Any, tmp_path: Path) -> None:
    torch.save({"model": {"w": weights(64, 64)}, "tags": {"a", "b", "c", "d", "e", "f"}}, tmp_path / "model.pth")
    outputs = []
    for seed in ("1", "2", "3"):
        installed("quantize", "model.pth", "-o", f"{seed}.safetensors", env={"PYTHONHASHSEED": seed})
        outputs.append((tmp_path / f"{seed}.safetensors").read_bytes())
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("value", [10**5000, "\ud800"], ids=["an int of 5,001 digits", "a lone surrogate"])
def test_a_value_that_json_cannot_hold_is_kept_or_refused_with_a_reason(
    decoder: Any, tmp_path: Path, value: Any
) -> None:
    source = tmp_path / "model.pth"
    torch.save({"model": {"w": weights(64, 64)}, "value": value}, source)
    try:
        path = compress(source, "int8")
    except ModelzipError as error:
        assert "model.pth" in str(error)
    else:
        assert_same(decoder.decode(path), path)


def test_no_file_is_written_whose_header_no_reader_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that a pickle holds once and names a million times is that long a million times in JSON."""
    source = tmp_path / "model.pth"
    torch.save({"model": {"w": weights(64, 64)}, "values": ["x" * 100] * 1000}, source)
    monkeypatch.setattr("modelzip_cli.containers.safetensors_file.MOST_HEADER", 50_000)
    with pytest.raises(ModelzipError):
        compress(source, "int8")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_a_type_that_torch_does_not_have_is_decoded_as_bytes_and_refused_where_torch_is_needed(
    decoder: Any, tmp_path: Path, dtype: str
) -> None:
    source, bits = tmp_path / "model.safetensors", bytes(range(12))
    elements = 96 // DTYPES[dtype.lower()].bits
    text = json.dumps({"w": {"dtype": dtype, "shape": [2, elements // 2], "data_offsets": [0, 12]}}).encode()
    source.write_bytes(len(text).to_bytes(8, "little") + text + bits)
    assert decoder.decode(compress(source, "int8"))["w"].tobytes() == bits
    with pytest.raises(ModelzipError, match="tensor w"):
        load_file(source)
    with pytest.raises(ModelzipError, match="tensor w"):
        restore_file(source, tmp_path / "back.pth", Settings(), dtype=None, most_bytes=None)


@pytest.mark.parametrize(
    ("scheme", "code"), [("fp8", 127), ("fp8", 255), ("ternary", 0b11), ("fixed8", 255), ("fixed4", 0b1111)]
)
def test_a_code_that_a_scheme_does_not_have_is_refused(decoder: Any, tmp_path: Path, scheme: str, code: int) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"w": weights(64, 64)}, source)
    path = compress(source, scheme, coder="bitpack")
    data = bytearray(path.read_bytes())
    arrays, _ = decoder.read_safetensors(bytes(data))
    codes = arrays["w:codes"][2]
    place = data.index(codes)
    data[place] = code
    path.write_bytes(data)
    checksum = f"{zlib.crc32(data[place : place + len(codes)]):08x}"
    rewrite(path, lambda manifest: manifest["tensors"]["w"]["parts"]["codes"].update(crc32=checksum))
    with pytest.raises(ValueError, match=r"tensor w: a (code is out of range|weight is not finite)"):
        decoder.decode(path)
    with pytest.raises(ModelzipError, match=r"tensor w: a (code is out of range|weight is not finite)"):
        load_file(path)


def test_a_native_directory_is_as_the_page_says(decoder: Any, tmp_path: Path) -> None:
    """Each shard is a native file of its own, and the index has the keys of the example."""
    source, output = tmp_path / "model", tmp_path / "small"
    source.mkdir()
    shards = {"model-00001-of-00002": {"a": weights(64, 64)}, "model-00002-of-00002": {"b": weights(64, 64, seed=1)}}
    for stem, tensors in shards.items():
        save_file(tensors, source / f"{stem}.safetensors")
    weight_map = {name: f"{stem}.safetensors" for stem, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 32768}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "config.json").write_text("{}")
    compress_file(source, output, Recipe(scheme="nf4"), Settings(), command="quantize")

    written = json.loads((output / "modelzip.index.json").read_text())
    (example,) = (json.loads(text) for text in re.findall(r"```\n(\{.*?)```", PAGE, re.DOTALL))
    assert set(written) == set(example)
    assert written["index"] == example["index"] == "model.safetensors.index.json"
    assert written["metadata"] == index["metadata"]
    assert written["weight_map"] == {
        name: f"{stem}.modelzip.safetensors" for stem, tensors in shards.items() for name in tensors
    }
    assert (output / "config.json").read_text() == "{}"
    for name, file in written["weight_map"].items():
        assert set(decoder.decode(output / file)) == {name}
        assert_same(decoder.decode(output / file), output / file)
        assert manifest_of(output / file)["source"]["name"] == weight_map[name]
        assert manifest_of(output / file)["source"]["container"] == "safetensors"


def test_the_levels_of_nf4_on_the_page_are_those_of_the_package(decoder: Any) -> None:
    from modelzip_cli.schemes.fp8 import VALUES
    from modelzip_cli.schemes.normal_float import LEVELS

    (table,) = re.findall(r"```\n(-1\.0 .*?)```", PAGE, re.DOTALL)
    assert np.array(table.split(), np.float32).tobytes() == LEVELS.tobytes() == decoder.TABLES["nf4"].tobytes()
    assert np.array_equal(decoder.TABLES["fp8"], VALUES, equal_nan=True)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a native file and make its checksum right again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["modelzip"])
    change(manifest)
    text = json.dumps(manifest)
    header["__metadata__"] |= {"modelzip": text, "modelzip.sha256": hashlib.sha256(text.encode()).hexdigest()}
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def test_the_decoder_is_short_and_needs_only_numpy() -> None:
    text = DECODER.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= 560
    assert f"such a reader, in\n{lines} lines of Python" in PAGE
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_the_decoder_as_a_program_lists_the_tensors(tmp_path: Path) -> None:
    import subprocess

    source = tmp_path / "model.safetensors"
    save_file({"w": weights(64, 64), "bias": weights(5).bfloat16(), "n": torch.tensor(3)}, source)
    path = compress(source, "int8")
    run = subprocess.run([sys.executable, "-I", DECODER, path], capture_output=True, text=True, check=True)
    assert sorted(run.stdout.splitlines()) == ["bias [5] float32", "n [] int64", "w [64, 64] float32"]


def tables() -> Iterator[list[str]]:
    """The cells of every row of every table of the page, without their backquotes."""
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def words() -> set[str]:
    """Everything that stands between backquotes on the page."""
    return set(re.findall(r"`([^`\n]+)`", PAGE))


def test_the_table_of_element_types_is_that_of_the_package() -> None:
    rows = {cells[0].strip("`"): cells[1:] for cells in tables() if len(cells) == 5}
    rows.pop("id")
    assert rows == {
        dtype.id: [
            str(dtype.bits),
            "none" if dtype.id in ("c32", "c128") else f"`{dtype.id.upper()}`",
            f"`{dtype.torch}`" if dtype.torch else "none",
            dtype.kind.replace("-", " "),
        ]
        for dtype in DTYPES.values()
    }


def test_every_scheme_is_on_the_page_with_its_parts() -> None:
    spec = TensorSpec("w", DTYPES["f64"], (64, 64))
    for scheme in SCHEMES:
        assert scheme in words()
    for name in NAMES:
        for coder in ("bitpack", "rans"):
            for part in native_parts(spec, parse_scheme(name), coder):
                assert part.local in words()
    assert words() >= set(CODERS)


SAMPLE = ROOT / "sample_models" / "docs_lm.safetensors"  # a model of layers
GROUPS = ("recipe", "source", "outer", "aid")  # keys of a manifest whose own keys the page lists


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Manifests with everything in them that a manifest can have."""
    folder = tmp_path_factory.mktemp("manifests")
    rules = (Rule("layers.0.*", "fp16"), Rule("layers.1.*", "int3-asym"))
    amounts: tuple[dict[str, Any], ...] = (
        {"pruning": Pruning(sparsity=0.5, scope="global", min_keep=0.1), "rules": (Rule("*", amount=0.25),)},
        {"pruning": Pruning(threshold=1e-6), "depth": Depth(0.5)},
        {"pruning": Pruning(pattern="2:4", criterion="random", seed=3), "depth": Depth(None, (1,))},
    )
    asked = {"rules": rules, "only": ("*proj*",), "skip": ("*bias",), "keep_extras": True, "allow_nonfinite": True}
    return [
        manifest_of(compress(trainer_pth(folder / "a.pth"), "int4", key="model_state_dict", **asked)),
        manifest_of(compress(bf16_safetensors(folder / "b.safetensors"), "binary")),
        manifest_of(compress(tied_pth(folder / "c.pth"), "fixed8")),
        *(
            manifest_of(compress(bf16_safetensors(folder / f"{name}.safetensors"), name))
            for name in ("binary-m2", "nf4")
        ),
        manifest_of(compress(bf16_safetensors(folder / "d.safetensors"), "codebook4", coder="rans")),
        manifest_of(compress(bf16_safetensors(folder / "e.safetensors"), "lossless")),
        *(
            manifest_of(compress(bf16_safetensors(folder / f"{kind}.safetensors"), "ecq", goal=Goal(kind, value)))
            for kind, value in (("ratio", 3.0), ("target_size", 30_000), ("bpw", 4.0), ("min_sqnr", 20.0))
        ),
        *(
            manifest_of(compress(Path(copy(SAMPLE, folder / f"p{number}.safetensors")), "lossless", **amount))
            for number, amount in enumerate(amounts)
        ),
        manifest_of(with_aid(folder)),
    ]


def with_aid(folder: Path) -> Path:
    """A native file that a model helped with: statistics of one weight, other bits for another."""
    source, output = bf16_safetensors(folder / "aided.safetensors"), folder / "aided.int4.safetensors"
    one, other = "layers.0.proj.weight", "layers.1.proj.weight"
    with closing(open_source(source)) as opened:
        replaced = {other: opened.read(other, 0, opened.specs[other].size)}
    hessian = np.eye(64, dtype=np.float32)
    with closing(statistics_file(folder / "statistics.safetensors", {f"{one}:hessian": hessian})) as statistics:
        aid = Aid(statistics, replaced=replaced)
        compress_file(source, output, Recipe("int4"), Settings(), command="quantize", aid=aid)
    return output


def test_every_key_of_a_manifest_is_on_the_page(manifests: list[dict[str, Any]]) -> None:
    named = words()
    for manifest in manifests:
        assert set(manifest) <= named
        for group in GROUPS:
            assert {f"{group}.{key}" for key in manifest.get(group) or ()} <= named
        for rule in manifest["recipe"].get("set", ()):
            assert set(rule) <= named
        for entry in manifest["tensors"].values():
            assert set(entry) <= named
            for local, part in entry["parts"].items():
                assert {local, *part} <= named


def test_every_key_that_the_page_lists_is_in_a_manifest(manifests: list[dict[str, Any]]) -> None:
    listed = {
        key
        for cells in tables()
        if len(cells) == 3 and re.match("(int|text|any|object|list|bool|number)", cells[1])
        for key in re.findall(r"`([^`]+)`", cells[0])
    }
    found: set[str] = set()
    for manifest in manifests:
        found |= set(manifest)
        found |= {f"{group}.{key}" for group in GROUPS for key in manifest.get(group) or ()}
        found |= {key for entry in manifest["tensors"].values() for key in entry}
    assert listed == found


def test_the_tags_of_a_tree_are_on_the_page_with_true_examples() -> None:
    examples = {
        cells[0].strip("`"): json.loads(cells[1].strip("`"))
        for cells in tables()
        if len(cells) == 3 and cells[1].startswith('`{"$"')
    }
    assert set(examples) == set(_TAGGED)
    for tag, example in examples.items():
        assert example["$"] == tag
        assert to_json(from_json(example)) == example


def test_the_manifest_on_the_page_is_that_of_the_sample(tmp_path: Path) -> None:
    (example,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    output = tmp_path / "out.safetensors"
    source = ROOT / "sample_models" / "digits_mlp.pth"
    compress_file(source, output, Recipe(scheme="int4-g64-asym"), Settings(), command="quantize")
    compare(example, manifest_of(output))


def compare(example: Any, real: Any) -> None:
    """Hold a shortened value against the real one; `…` stands for anything, and ends a list or an object."""
    if example == "…":
        return
    if isinstance(example, dict):
        shown = [key for key in example if key != "…"]
        assert isinstance(real, dict)
        assert shown == (list(real)[: len(shown)] if "…" in example else list(real))
        for key in shown:
            compare(example[key], real[key])
    elif isinstance(example, list):
        shown = example[:-1] if example[-1:] == ["…"] else example
        assert isinstance(real, list)
        assert len(real) > len(shown) if len(shown) < len(example) else len(real) == len(shown)
        for one, other in zip(shown, real, strict=False):
            compare(one, other)
    else:
        assert (type(example), example) == (type(real), real)


@pytest.mark.parametrize(
    ("codes", "bits", "packed"),
    [([1, 2, 3, 4, 5], 3, "D1 58"), ([1, 2, 15], 4, "21 0F"), ([1, 300], 16, "01 00 2C 01")],
)
def test_the_packed_bytes_on_the_page_are_those_that_are_written(codes: list[int], bits: int, packed: str) -> None:
    assert f"`{packed}`" in PAGE
    assert pack(np.array([codes], np.uint16 if bits > 8 else np.uint8), bits).tobytes() == bytes.fromhex(packed)


def test_the_checksum_is_the_crc_32_of_zlib_over_the_rows_of_a_slab(decoder: Any, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file({"w": weights(9, 131_072 + 5)}, source)  # 3 rows a slab
    path = compress(source, "int8")
    data = path.read_bytes()
    arrays, _ = decoder.read_safetensors(data)
    stored = arrays["w:codes"][2]
    row = len(stored) // 9
    expected = "".join(f"{zlib.crc32(stored[first * row : (first + 3) * row]):08x}" for first in (0, 3, 6))
    assert manifest_of(path)["tensors"]["w"]["parts"]["codes"]["crc32"] == expected


def test_the_examples_of_entropy_coding_on_the_page_are_right(decoder: Any) -> None:
    from modelzip_cli.coders.rans import unpack_vector

    (text,) = re.findall(r"The vector 1, 0, 2 may be the bytes (.*?): 12 bytes", PAGE)
    stream = bytes.fromhex(text.replace("`", ""))
    assert decoder.Bytes(stream).vector(3).tolist() == unpack_vector(np.frombuffer(stream, np.uint8), 3)[0].tolist()
    assert decoder.Bytes(stream).vector(3).tolist() == [1, 0, 2]
    for left, right in re.findall(r"^(\d+) = (\d+ \* 2048 \+ \d+) ", PAGE, re.MULTILINE):
        factor, rest = (int(number) for number in re.findall(r"\d+", right.replace("2048", "")))
        assert int(left) == factor * 2048 + rest
    (text,) = re.findall(r"300 is `(.*?)`", PAGE)
    assert decoder.Bytes(bytes.fromhex(text)).number() == 300
    (slabs,) = re.findall(r"2,500 rows of 40 columns are slabs of (\d+), (\d+) and (\d+) rows", PAGE)
    spec = TensorSpec("w", DTYPES["f32"], (2500, 40))
    assert [last - first for first, last in spec.row_slabs(tall=True)] == [int(rows) for rows in slabs]
    assert [last - first for first, last in decoder.row_slabs([2500, 40], True)] == [int(rows) for rows in slabs]


def test_the_state_machine_on_the_page_is_that_of_the_package(decoder: Any) -> None:
    from modelzip_cli.kernels.points import index_of
    from modelzip_cli.schemes.ecq import low_bits

    rows = {
        cells[0]: [int(cell) for cell in cells[1:]] for cells in tables() if len(cells) == 9 and cells[0] != "state"
    }
    assert [*zip(rows["next, k even"], rows["next, k odd"], strict=True)] == [tuple(pair) for pair in decoder.NEXT]
    assert rows["q"] == [0, 1] * 4
    points, state = [], 0
    for k in (1, -2, 0, 3):
        points.append(2 * k - (state & 1) * int(np.sign(k)))
        state = int(decoder.NEXT[state, k & 1])
    assert f"the points {', '.join(map(str, points))}" in PAGE
    column = np.array(points, np.int16)[:, None]
    classes, known = (np.full(length, 12, np.int32) for length in (4, 1)), np.ones((80, 256), np.uint8)
    rows_class, column_class = classes
    index, _, _ = index_of(column, rows_class, column_class - 12, True, low_bits(True), known)
    assert [int(symbol) & 0xFF for symbol in index[:, 0]] == [128, 125, 127, 130]
    for trellis, first in ((True, 26), (False, 22)):
        assert low_bits(trellis).tolist() == [max(0, (c - first) // 4) for c in range(40)]
        assert f"max(0, floor((class - {first}) / 4))" in PAGE
