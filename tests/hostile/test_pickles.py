"""Pickles that attack their reader: nothing runs, nothing is imported, and memory and time stay bounded."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest

from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsafeInput, UnsupportedCheckpoint
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from modelzip_cli.source import open_source
from tests.hostile.makers import (
    BUILD,
    MARK,
    POP,
    REDUCE,
    call,
    integer,
    items,
    mapping,
    memoized,
    name,
    pickle_of,
    read_all,
    recalled,
    sequence,
    storage,
    tensor,
    text,
    torch_file,
    torch_members,
    zip_of,
)

WEIGHTS = {"w": tensor()}


def shell(canary: Path) -> bytes:
    """The argument of an attack: a command that leaves a file."""
    return text(f"touch {canary}")


def attacks(canary: Path) -> dict[str, bytes]:
    """Values that would run code in a real unpickler, each as opcodes."""
    command = shell(canary)
    inner = pickle_of(call("os.system", command))
    rebuild = name("torch._utils._rebuild_tensor_v2")
    state = sequence(b"N", mapping({"__defaults__": sequence(command)}))
    return {
        "os.system": call("os.system", command),
        "posix.system by STACK_GLOBAL": text("posix") + text("system") + b"\x93" + sequence(command) + REDUCE,
        "builtins.eval": call("builtins.eval", text(f"open({str(canary)!r}, 'w')")),
        "the Python 2 name of eval": call("__builtin__.eval", text(f"open({str(canary)!r}, 'w')")),
        "subprocess.Popen by NEWOBJ": name("subprocess.Popen")
        + sequence(items(text("touch"), text(str(canary))))
        + b"\x81",
        "NEWOBJ_EX": name("subprocess.Popen") + sequence(items(text("touch"))) + mapping({}) + b"\x92",
        "BUILD on a function of torch": rebuild + state + BUILD,
        "slot state on an ordered dict": call("collections.OrderedDict") + state + BUILD,
        "__setstate__ on an ordered dict": call("collections.OrderedDict") + mapping({"__class__": command}) + BUILD,
        "a pickle inside": call("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(inner)) + inner),
        "INST": MARK + command + b"ios\nsystem\n",
        "OBJ": MARK + name("os.system") + command + b"o",
        "EXT1": b"\x82\x01" + sequence(command) + REDUCE,
        "EXT4": b"\x84\x01\x00\x00\x00" + sequence(command) + REDUCE,
        "a persistent id as a line": b"Pos.system\n",
        "reduce of a reduce": call("getattr", name("os.system"), text("__call__")) + sequence(command) + REDUCE,
        "functools.partial": call("functools.partial", name("os.system"), command) + sequence() + REDUCE,
        "numpy's object arrays": call("numpy.core.multiarray._reconstruct", name("os.system"), command),
        "a rebuilt tensor subclass": call(
            "torch._tensor._rebuild_from_type_v2", name("os.system"), b"N", sequence(command), b"N"
        ),
        "map over a list": call("builtins.list", call("builtins.map", name("os.system"), items(command))),
    }


@pytest.mark.parametrize("attack", attacks(Path("canary")))
@pytest.mark.parametrize("place", ["beside the weights", "as a weight", "as the whole file", "thrown away"])
def test_no_pickle_runs_code(attack, place, tmp_path):
    canary = tmp_path / "canary"
    opcodes = attacks(canary)[attack]
    path = torch_file(
        tmp_path / "attack.pth",
        {
            "beside the weights": mapping({"model": mapping(WEIGHTS), "extra": opcodes}),
            "as a weight": mapping(WEIGHTS | {"v": opcodes}),
            "as the whole file": opcodes,
            "thrown away": opcodes + POP + mapping(WEIGHTS),
        }[place],
    )
    with contextlib.suppress(ModelzipError):
        read_all(path)
    assert not canary.exists()


def test_reading_a_hostile_file_imports_neither_torch_nor_pickle_nor_subprocess(tmp_path, read_in_a_process):
    canary = tmp_path / "canary"
    path = torch_file(
        tmp_path / "attack.pth", mapping({"model": mapping(WEIGHTS), "v": call("os.system", shell(canary))})
    )
    outcome, imported, _ = read_in_a_process(path)
    assert (outcome, imported) == ("read", "")
    assert not canary.exists()


# What becomes of objects of unknown classes


def test_an_object_of_an_unknown_class_beside_the_weights_is_left_out_with_a_warning_that_names_it(tmp_path):
    settings = call("mytrainer.Config", text("x")) + mapping({"lr": integer(1)}) + BUILD
    path = torch_file(tmp_path / "trainer.pth", mapping({"state_dict": mapping(WEIGHTS), "config": settings}))
    source = open_source(path)
    source.close()
    assert list(source.specs) == ["w"]
    assert any("mytrainer.Config" in warning for warning in source.warnings)
    assert "config" not in source.outer.tree


@pytest.mark.parametrize("root", ["whole", "nested"])
def test_an_object_of_an_unknown_class_where_weights_should_be_is_unsafe(root, tmp_path):
    module = call("mymodels.Net") + mapping({"_parameters": mapping(WEIGHTS)}) + BUILD
    path = torch_file(tmp_path / "module.pth", module if root == "whole" else mapping({"model": module}))
    with pytest.raises(UnsafeInput, match=r"mymodels\.Net") as caught:
        open_source(path)
    assert caught.value.exit_code == 5


def test_a_class_with_a_name_of_escape_sequences_is_named_without_them(tmp_path):
    config = text("m") + text("\x1b[31mC\u202e") + b"\x93" + sequence() + REDUCE
    source = open_source(torch_file(tmp_path / "a.pth", mapping({"model": mapping(WEIGHTS), "c": config})))
    source.close()
    assert "\x1b" not in source.warnings[0]
    assert "\\x1b[31mC\\u202e" in source.warnings[0]


# Bombs: small files that ask for much memory or time

DEEP = 200_000
NONES = 60_000
TWICE = b"2\x86"  # DUP, TUPLE2: a pair of the value and itself


def bombs() -> dict[str, bytes]:
    """Files of at most some 100 kB (the deepest: 400) that grow without bound in a reader that does as it is told."""
    many = memoized(items(b"N" * NONES), 1)
    copies = memoized(name("builtins.list"), 2) + POP + memoized(sequence(recalled(1)), 3) + POP
    repeated = MARK + (recalled(2) + recalled(3) + REDUCE) * 5000 + b"l"
    opaque = memoized(name("a.B"), 2) + POP
    return {
        "a key nested 200,000 deep": mapping([(b")" + b"\x85" * DEEP, b"N")]),
        "a key of 2^60 leaves": mapping([(b")" + TWICE * 60, b"N")]),
        "a set item of 2^60 leaves": b"\x8f(" + b")" + TWICE * 60 + b"\x90",
        "a value nested 200,000 deep": b"]" * DEEP + b"a" * (DEEP - 1),
        "a value of 2^60 leaves": b")" + TWICE * 60,
        "a list in itself": memoized(b"]", 1) + recalled(1) + b"a",
        "a dict in itself": memoized(b"}", 1) + text("a") + recalled(1) + b"s",
        "a list of one list many times": POP.join((memoized(items(b"N" * NONES), 1), items(recalled(1) * 20_000))),
        "a list copied thousands of times": many + POP + copies + repeated,
        "arguments copied thousands of times": memoized(sequence(b"N" * NONES), 3)
        + POP
        + opaque
        + repeated.replace(recalled(1), recalled(3)),
        "bytearray of two gigabytes": call("builtins.bytearray", integer(2**31)),
        "a memo entry far away": b"Nr\x00\x00\x00\x10",
        "bytes longer than the file": b"\x8e" + struct.pack("<Q", 2**62),
        "a text longer than the file": b"\x8d" + struct.pack("<Q", 2**62),
        "many class names": items(*(f"cA\n{number}\n".encode() for number in range(20_000))),
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_small_file_cannot_take_much_memory_or_time(bomb, tmp_path, read_in_a_process):
    path = torch_file(tmp_path / "bomb.pth", mapping({"model": mapping(WEIGHTS), "extra": bombs()[bomb]}))
    outcome, _, peak = read_in_a_process(path)
    assert outcome in ("read", "BrokenCheckpoint", "UnsafeInput", "UnsupportedCheckpoint")
    assert peak < 1000


# Geometry

BAD_TENSORS = {
    "offset beyond the storage": tensor((2, 2), offset=1, held=storage(count=4)),
    "stride beyond the storage": tensor((2, 2), (3, 1)),
    "shape beyond the storage": tensor((3, 2), held=storage(count=4)),
    "huge shape": tensor((2**40, 2**40), held=storage(count=4)),
    "negative size": tensor((-1, 2), held=storage(count=4)),
    "negative stride": tensor((2, 2), (-2, 1), offset=2),
    "negative offset": tensor((1,), offset=-1, held=storage(count=4)),
    "size of 2^63": tensor((2**63,), held=storage(count=4)),
    "fewer strides than sizes": tensor((2, 2), (1,)),
    "65 dimensions": tensor((1,) * 65, held=storage(count=4)),
    "a flood from one float": tensor((2**20, 2**20), (0, 0), held=storage(count=4)),
    "a storage that says more than it has": tensor((8,), held=storage(count=8)),
    "a storage that says less than it has": tensor((3,), held=storage(count=3)),
    "a storage that is not there": tensor((2, 2), held=storage("1")),
    "a storage by a path": tensor((2, 2), held=storage("../data/0")),
    "a storage by an absolute path": tensor((2, 2), held=storage("/etc/passwd")),
    "a storage of an unknown type": tensor((2, 2), held=storage(kind="os.system")),
    "a negative count": tensor((2, 2), held=storage(count=-4)),
    "text for a storage": tensor((2, 2), held=text("0")),
    "conjugate bit": tensor(metadata=(mapping({"conj": b"\x88"}),)),
    "negative bit": tensor(metadata=(mapping({"neg": b"\x88"}),)),
    "a persistent id that is text": tensor(held=text("0") + b"Q"),
    "a persistent id that is a number": tensor(held=integer(0) + b"Q"),
    "a persistent id without a count": tensor(held=sequence(text("storage"), name("torch.FloatStorage")) + b"Q"),
    "a persistent id whose key is a number": tensor(
        held=sequence(text("storage"), name("torch.FloatStorage"), integer(0), text("cpu"), integer(4)) + b"Q"
    ),
    "a persistent id whose count is text": tensor(
        held=sequence(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), text("4")) + b"Q"
    ),
    "a shape that is text": call(
        "torch._utils._rebuild_tensor_v2", storage(), integer(0), text("22"), sequence(integer(2), integer(1)), b"\x89"
    ),
}


@pytest.mark.parametrize("wrong", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(wrong, tmp_path):
    with pytest.raises(BrokenCheckpoint):
        read_all(torch_file(tmp_path / "bad.pth", mapping({"w": BAD_TENSORS[wrong]})))


def test_many_names_for_one_storage_are_refused_when_their_bytes_would_be_a_flood(tmp_path):
    count = 1 << 18  # one MiB of floats, under a thousand names, each another view of it
    views = {str(n): tensor((count - n,), (1,), held=storage(count=count)) for n in range(1000)}
    path = torch_file(tmp_path / "flood.pth", mapping(views), storages={"0": bytes(4 * count)})
    with pytest.raises(BrokenCheckpoint, match="repeat"):
        open_source(path)


def test_a_small_expanded_view_is_read_as_torch_reads_it(tmp_path):
    path = torch_file(tmp_path / "expanded.pth", mapping({"w": tensor((3, 4), (0, 1), held=storage(count=4))}))
    row = struct.pack("<4f", 1, 2, 3, 4)
    assert read_all(path).tensors["w"] == ("f32", (3, 4), row * 3)


def test_complex_views_with_strides_are_read_as_torch_reads_them(tmp_path):
    import torch

    path = tmp_path / "complex.pth"
    value = torch.complex(torch.arange(66_000.0, dtype=torch.float64), torch.ones(66_000, dtype=torch.float64))
    torch.save({"w": value.reshape(3, 22_000).t()}, path)
    expected = value.reshape(3, 22_000).t().contiguous().numpy().tobytes()
    assert read_all(path).tensors["w"][2] == expected


# Values that a pickle can hold and JSON cannot

ODD_VALUES = {
    "a number of 10,000 digits": integer(10**9999),
    "a key of 10,000 digits": mapping([(integer(10**9999), b"N")]),
    "a lone surrogate": text("\ud800"),
    "a lone surrogate as a key": mapping({"\ud800": b"N"}),
    "a mark": b"]" + MARK + b"a",
    "a tensor as a key": mapping([(tensor(), integer(1))]),
    "a tensor in a set": call("builtins.set", items(tensor())),
    "a tensor in a shape": call("torch.Size", items(tensor())),
    "a bare storage": storage(),
    "a dtype": name("torch.float32"),
    "a function": name("os.system"),
    "an unknown object in a tuple in a set": call("builtins.set", items(sequence(call("a.B")))),
    "an unknown object in a key": mapping([(sequence(call("a.B")), integer(1))]),
    "an unknown object in a shape": call("torch.Size", items(call("a.B"))),
    "not a number": b"G" + struct.pack(">d", float("nan")),
    "a dict with our own tag": mapping({"$": text("weights")}),
    "metadata that is ours": mapping({"__metadata__": mapping({"modelzip": text("{}")})}),
    "lists 63 deep": b"]" * 60 + b"a" * 59,
}


@pytest.mark.parametrize("odd", ODD_VALUES)
@pytest.mark.parametrize("layout", ["native", "dense"])
@pytest.mark.parametrize("place", ["beside the weights", "among the weights"])
def test_any_value_beside_the_weights_is_kept_or_refused_without_a_crash(odd, place, layout, tmp_path):
    values = {"extra": ODD_VALUES[odd]}
    root = mapping(WEIGHTS | values) if place == "among the weights" else mapping({"model": mapping(WEIGHTS)} | values)
    path, output = torch_file(tmp_path / "odd.pth", root), tmp_path / "out.pth"
    try:
        compress_file(path, output, Recipe(layout=layout, keep_extras=True), Settings(), command="quantize")
    except ModelzipError:
        assert not output.exists()
    else:
        assert read_all(output).tensors["w"] == read_all(path).tensors["w"]


@pytest.mark.parametrize("manifest", ["{}", "\ud800", '{"format_version": 1, "a": "\ud800"}', "[", "1e999"])
def test_a_torch_file_with_a_false_manifest_is_refused(manifest, tmp_path):
    metadata = mapping({"modelzip": text(manifest), "modelzip.sha256": text("0" * 64)})
    with pytest.raises(ModelzipError):
        read_all(torch_file(tmp_path / "false.pth", mapping(WEIGHTS | {"__metadata__": metadata})))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_file_without_a_state_dict_is_refused_in_every_protocol(protocol, tmp_path):
    import pickle

    path = tmp_path / "values.pth"
    path.write_bytes(zip_of(torch_members(pickle.dumps({"a": [1, "b", None, 2.5, b"c"]}, protocol))))
    with pytest.raises((UnsupportedCheckpoint, BrokenCheckpoint), match=r"no state dict|data\.pkl"):
        open_source(path)
