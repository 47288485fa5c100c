"""Whatever the bytes, a reader refuses them with one of our errors or gives what torch or safetensors gives."""

from __future__ import annotations

import json
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelzip_cli.containers.tree import Call, Global, Named, Weights
from modelzip_cli.errors import ModelzipError
from modelzip_cli.source import open_source
from modelzip_cli.tensors import DTYPES
from tests.hostile.honest import honest_safetensors, honest_torch
from tests.hostile.makers import (
    CENTRAL,
    END,
    LOCAL,
    call,
    entry,
    integer,
    items,
    mapping,
    name,
    pickle_of,
    read_all,
    safetensors_of,
    sequence,
    storage,
    tensor,
    text,
    torch_file,
    torch_members,
    zip_of,
)

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)


def raw(value: torch.Tensor) -> bytes:
    fresh = value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return fresh.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def agrees_with_safetensors(path: Path) -> bool:
    """Read a file with both readers; False when ours refuses it."""
    try:
        found = read_all(path)
    except ModelzipError:
        return False
    expected = safetensors.torch.load(path.read_bytes())
    assert set(found.tensors) == set(expected)
    for key, (dtype, shape, data) in found.tensors.items():
        assert (str(expected[key].dtype), tuple(expected[key].shape)) == (f"torch.{DTYPES[dtype].torch}", shape)
        assert raw(expected[key]) == data
    return True


def agrees_with_torch(path: Path) -> bool:
    """Read a file with both readers; False when ours refuses it. What torch refuses has nothing to be compared with."""
    try:
        found = read_all(path)
        source = open_source(path, keep_extras=True)
        source.close()
    except ModelzipError:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, weights_only=True)
    except Exception:  # torch raises a dozen classes for malformed files
        return True
    if source.warnings:
        return True  # objects of other classes were left out
    compare(source.outer.tree, loaded, found.tensors, source.outer.names)
    return True


def compare(tree: Any, loaded: Any, tensors: dict[str, Any], names: tuple[str, ...]) -> None:
    """Hold a tree of ours against what torch made of the same pickle."""

    def same(key: str, value: torch.Tensor) -> None:
        dtype, shape, data = tensors[key]
        assert (f"torch.{DTYPES[dtype].torch}", shape) == (str(value.dtype), tuple(value.shape))
        assert raw(value) == data

    if isinstance(tree, Weights) and tree.kind == "tensor":
        same(names[0], loaded)
    elif isinstance(tree, Weights):
        assert [key for key, value in loaded.items() if isinstance(value, torch.Tensor)] == [*names]
        for key in names:
            same(key, loaded[key])
        for _, key, value in tree.others:
            compare(value, loaded[key], tensors, names)
    elif isinstance(tree, Named):
        same(tree.name, loaded)
    elif isinstance(tree, dict):
        assert [*tree] == [*loaded]
        for key, value in tree.items():
            compare(value, loaded[key], tensors, names)
    elif isinstance(tree, Call) and tree.name == "torch.Size":
        compare(tree.arguments[0] if tree.arguments else (), tuple(loaded), tensors, names)
    elif isinstance(tree, (Call, Global)):
        assert type(loaded).__module__ == "torch"
    elif isinstance(tree, (list, tuple)):
        assert len(tree) == len(loaded)
        for value, other in zip(tree, loaded, strict=True):
            compare(value, other, tensors, names)
    elif isinstance(tree, float) and math.isnan(tree):
        assert math.isnan(loaded)
    else:
        assert tree == loaded and type(tree) is type(loaded)


# Any bytes


@ANY
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{"]), rest=st.binary()
)
def test_arbitrary_bytes_are_refused_or_read(start, rest, tmp_path):
    path = tmp_path / "any.bin"
    path.write_bytes(start + rest)
    try:
        read_all(path)
    except ModelzipError as error:
        assert "\n" not in str(error)


# Safetensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SIZES = st.integers(-1, 9) | st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63, 2**64])
ENTRIES = st.builds(
    entry,
    st.lists(SIZES, max_size=3) | JSON,
    st.integers(0, 40) | JSON,
    st.integers(0, 40) | JSON,
    st.sampled_from(["F32", "F16", "BF16", "I8", "BOOL", "F4", "F8_E8M0", "C64", "f32", ""]) | JSON,
)


@ANY
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=3), data=st.binary(max_size=40))
@example(header={"a": entry([0, 2**61], 0, 0)}, data=b"")
@example(header={"a": entry([3], 0, 3, "F4")}, data=b"abc")
@example(header={"__metadata__": {"a": "b"}, "w": entry([2], 0, 8)}, data=bytes(8))
def test_any_header_is_refused_or_read_as_safetensors_reads_it(header, data, tmp_path):
    path = tmp_path / "any.safetensors"
    path.write_bytes(safetensors_of(header, data))
    agrees_with_safetensors(path)


@pytest.fixture(scope="module")
def safetensors_bytes(tmp_path_factory) -> bytes:
    return honest_safetensors(tmp_path_factory.mktemp("s") / "a.safetensors").read_bytes()


@ANY
@given(
    place=st.integers(0, 10**6), cut=st.integers(0, 12), put=st.binary(max_size=12) | st.text('0123456789-[]{},:"eE\\u')
)
def test_an_edited_file_is_refused_or_read_as_safetensors_reads_it(place, cut, put, safetensors_bytes, tmp_path):
    place %= len(safetensors_bytes)
    put = put.encode() if isinstance(put, str) else put
    path = tmp_path / "edited.safetensors"
    path.write_bytes(safetensors_bytes[:place] + put + safetensors_bytes[place + cut :])
    agrees_with_safetensors(path)


def test_an_honest_safetensors_file_is_read_as_safetensors_reads_it(tmp_path):
    assert agrees_with_safetensors(honest_safetensors(tmp_path / "a.safetensors"))


F32 = '"dtype":"F32","shape":[1],"data_offsets":'
MALFORMED_HEADERS = {
    "one name twice": f'{{"a":{{{F32}[0,4]}},"a":{{{F32}[0,4]}}}}',
    "one name twice, once escaped": f'{{"a":{{{F32}[0,4]}},"\\u0061":{{{F32}[0,4]}}}}',
    "one key of an entry twice": f'{{"a":{{{F32}[0,4],"dtype":"F32"}}}}',
    "a lone surrogate in a name": f'{{"\\ud800":{{{F32}[0,4]}}}}',
    "not a number": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
    "infinity": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}',
    "a float for a size": '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "true for a size": '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "a size of 5,000 digits": f'{{"a":{{"dtype":"F32","shape":[{"1" * 5000}],"data_offsets":[0,4]}}}}',
    "nested a million deep": '{"a":' + "[" * 1_000_000,
    "nested, and closed": '{"__metadata__":' + '{"a":' * 90_000 + "1" + "}" * 90_000 + "}",
    "an unknown dtype": '{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}',
    "a dtype that is a list": '{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
    "a key too many": f'{{"a":{{{F32}[0,4],"x":1}}}}',
    "a key too few": '{"a":{"dtype":"F32","shape":[1]}}',
    "offsets in the wrong order": f'{{"a":{{{F32}[4,0]}}}}',
    "offsets that overlap": f'{{"a":{{{F32}[0,4]}},"b":{{{F32}[0,4]}}}}',
    "a hole": f'{{"a":{{{F32}[0,4]}},"b":{{{F32}[8,12]}}}}',
    "data before the first": f'{{"a":{{{F32}[4,8]}}}}',
    "fewer bytes than the shape": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    "a product above 64 bits": '{"a":{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}}',
    "65 dimensions": f'{{"a":{{"dtype":"F32","shape":[{",".join("1" * 65)}],"data_offsets":[0,4]}}}}',
    "metadata that is a list": f'{{"__metadata__":[],"a":{{{F32}[0,4]}}}}',
    "metadata with a number": f'{{"__metadata__":{{"a":1}},"a":{{{F32}[0,4]}}}}',
    "a list": "[]",
    "a space before": f' {{"a":{{{F32}[0,4]}}}}',
    "two values": f'{{"a":{{{F32}[0,4]}}}}{{}}',
    "a byte order mark": f'\ufeff{{"a":{{{F32}[0,4]}}}}',
    "a comma too many": f'{{"a":{{{F32}[0,4]}},}}',
    "latin-1": b'{"\xe9":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "surrogates in UTF-8": b'{"\xed\xa0\x80":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
}


@pytest.mark.parametrize("wrong", MALFORMED_HEADERS)
def test_a_malformed_header_is_refused_in_one_line(wrong, tmp_path):
    header = MALFORMED_HEADERS[wrong]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors_of(header if isinstance(header, bytes) else header.encode(), bytes(4)))
    with pytest.raises(ModelzipError) as caught:
        read_all(path)
    assert len(str(caught.value)) < len(str(path)) + 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_false_header_length_is_refused(length, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors_of({"a": entry([1], 0, 4)}, bytes(4), length=length))
    with pytest.raises(ModelzipError):
        read_all(path)


# Torch files

PIECES = [
    *(
        b"N",
        b"\x88",
        b"(",
        b")",
        b"}",
        b"]",
        b"]",
        b"t",
        b"e",
        b"u",
        b"s",
        b"a",
        b"R",
        b"b",
        b"0",
        b"1",
        b"2",
        b"Q",
        b".",
    ),
    *(
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"\x93",
        b"\x94",
        b"q\x01",
        b"h\x01",
        b"r\x02\0\0\0",
        b"l",
        b"d",
    ),
    *(
        integer(0),
        integer(4),
        integer(-1),
        text("a"),
        text("w"),
        b"C\x02ab",
        b"G" + struct.pack(">d", 0.5),
        b"I3\n",
        b"K\x02",
    ),
    *(name("collections.OrderedDict"), name("torch._utils._rebuild_tensor_v2"), name("torch.Size"), name("a.B")),
    *(storage(), tensor(), mapping({"w": tensor()}), sequence(integer(2), integer(2)), items(integer(1))),
    *(
        call("collections.OrderedDict"),
        call("builtins.set", items(integer(1))),
        name("torch.float32"),
        b"\x96\x01" + bytes(7) + b"x",
    ),
]


@ANY
@given(opcodes=st.lists(st.sampled_from(PIECES), max_size=14))
def test_any_opcodes_are_refused_or_read_as_torch_reads_them(opcodes, tmp_path):
    agrees_with_torch(torch_file(tmp_path / "any.pth", *opcodes))


@ANY
@given(values=st.lists(st.sampled_from(PIECES), max_size=6), data=st.data())
def test_shuffled_opcodes_of_a_state_dict_are_refused_or_read_as_torch_reads_them(values, data, tmp_path):
    honest = [b"}", b"(", text("w"), tensor(), text("n"), integer(4), text("e"), items(), b"u"]
    agrees_with_torch(torch_file(tmp_path / "any.pth", *data.draw(st.permutations([*honest, *values]))))


@ANY
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    strides=st.lists(st.integers(0, 7), max_size=4),
    offset=st.integers(0, 5),
    count=st.integers(0, 64),
)
@example(shape=[2, 3], strides=[0, 1], offset=1, count=4)
@example(shape=[1, 4], strides=[7, 2], offset=0, count=7)
@example(shape=[0, 4], strides=[7, 7], offset=5, count=4)
def test_any_geometry_is_refused_or_read_as_torch_reads_it(shape, strides, offset, count, tmp_path):
    data = torch.arange(float(count)).numpy().tobytes()
    value = tensor(shape, strides, offset=offset, held=storage(count=count))
    agrees_with_torch(torch_file(tmp_path / "view.pth", mapping({"w": value}), storages={"0": data}))


@pytest.fixture(scope="module")
def torch_bytes(tmp_path_factory) -> bytes:
    return honest_torch(tmp_path_factory.mktemp("t") / "a.pth").read_bytes()


@ANY
@given(place=st.integers(0, 10**6), put=st.binary(min_size=1, max_size=4))
def test_an_overwritten_torch_file_is_refused_or_read_as_torch_reads_it(place, put, torch_bytes, tmp_path):
    place %= len(torch_bytes)
    path = tmp_path / "edited.pth"
    path.write_bytes(torch_bytes[:place] + put + torch_bytes[place + len(put) :])
    agrees_with_torch(path)


@ANY
@given(
    record=st.sampled_from(["local", "directory", "end"]),
    entry_number=st.integers(0, 3),
    place=st.integers(0, 45),
    put=st.binary(min_size=1, max_size=4),
)
def test_any_field_of_the_zip_records_can_be_false(record, entry_number, place, put, tmp_path):
    whole = bytearray(zip_of(torch_members(pickle_of(mapping({"w": tensor()})))))
    magic, size = {
        "local": (b"PK\x03\x04", LOCAL.size),
        "directory": (b"PK\x01\x02", CENTRAL.size),
        "end": (b"PK\x05\x06", END.size),
    }[record]
    begin = -1
    for _ in range(1 if record == "end" else entry_number + 1):
        begin = whole.index(magic, begin + 1)
    at = begin + place % size
    whole[at : at + len(put)] = put
    path = tmp_path / "false.pth"
    path.write_bytes(whole)
    agrees_with_torch(path)


def test_an_honest_torch_file_is_read_as_torch_reads_it(tmp_path):
    path = tmp_path / "a.pth"
    values = {"epoch": 3, "betas": (0.9, 0.999), "history": [1.5, math.inf, None], "classes": {0: "zero"}}
    torch.save({"model": {"w": torch.ones(2, 3).t(), "n": 1}, "size": torch.Size([3, 4]), **values}, path)
    loaded = torch.load(path, weights_only=True)
    assert agrees_with_torch(path)
    assert loaded["betas"] == (0.9, 0.999)


def test_an_error_names_the_file_and_can_be_printed(tmp_path):
    path = tmp_path / "evil\x1b[31m\n.safetensors"
    path.write_bytes(safetensors_of({"\x1b[31m": json.loads("{}")}))
    with pytest.raises(ModelzipError) as caught:
        read_all(path)
    assert str(caught.value).isprintable()
    assert "evil\\x1b[31m" in str(caught.value)
