"""Small files whose values, names or modules multiply: read in bounded memory and time, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, UsageError
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from modelzip_cli.source import open_source
from tests.hostile.makers import (
    BUILD,
    POP,
    call,
    integer,
    items,
    mapping,
    memoized,
    read_all,
    recalled,
    sequence,
    tensor,
    text,
    torch_file,
)
from tests.hostile.test_pickles import TWICE, WEIGHTS

NONE = b"N"
WEIGHT, LONG, NEXT = recalled(1), recalled(2), 3
START = memoized(tensor(), 1) + POP + memoized(text("a" * 60_000), 2) + POP  # a tensor and a long text, for all to use
DAG = b")" + TWICE * 60  # 2^60 leaves in some 120 bytes
DIGITS = integer(10**9999)


def module(parameters: bytes = b"}", modules: bytes = b"}", buffers: bytes = b"}", **more: bytes) -> bytes:
    """An `nn.Module` of somebody's class that was saved whole."""
    state = {"_parameters": parameters, "_buffers": buffers, "_modules": modules, **more}
    return call("somebodys.Net") + mapping(state) + BUILD


def grown(first: bytes, step, depth: int, place: int = NEXT) -> bytes:
    """`first`, then `depth` times what `step` makes of the place of the one before in the memo."""
    out = memoized(first, place)
    for _ in range(depth):
        out += POP + memoized(step(recalled(place)), place := place + 1)
    return out


def twice(below: bytes) -> bytes:
    return module(modules=mapping({"a": below, "b": below}))


def in_long(below: bytes) -> bytes:
    return mapping([(LONG, below)])


def weights(count: int) -> bytes:
    return mapping({str(number): WEIGHT for number in range(count)})


def nones(count: int) -> bytes:
    return mapping({str(number): NONE for number in range(count)})


def beside(value: bytes) -> bytes:
    """`value` in a checkpoint, beside its weights."""
    return mapping({"model": mapping({"w": WEIGHT}), "optimizer": value})


def opaque_key() -> bytes:
    """An object of an unknown class with endless contents, to be a key."""
    return call("a.B") + DAG + BUILD


def long_tuple(place: int = 90) -> bytes:
    """4,096 times one text of a million characters, as a key may hold it."""
    million = memoized(text("x" * 1_000_000), place) + POP
    row = memoized(sequence(*[recalled(place)] * 64), place + 1) + POP
    return million + row + sequence(*[recalled(place + 1)] * 64)


def fibonacci(depth: int = 40) -> bytes:
    """Dicts in dicts in which millions of tensors are called a.a.a...a."""
    out, place = memoized(mapping({"a": WEIGHT}), 3) + POP + memoized(mapping({"a": recalled(3), "a.a": WEIGHT}), 4), 4
    for _ in range(depth):
        pair = mapping({"a": recalled(place), "a.a": recalled(place - 1)})
        out += POP + memoized(pair, place := place + 1)
    return out


BOMBS = {
    "a module that holds another twice, 40 deep": grown(module(weights(1)), twice, 40),
    "a shared module of many weights": grown(module(weights(1000)), twice, 40),
    "a shared module of many absent weights": grown(module(nones(1000)), twice, 40),
    "a shared module of many absent modules": grown(module(modules=nones(1000)), twice, 40),
    "modules with long names": grown(module(weights(2000)), lambda below: module(modules=in_long(below)), 60),
    "modules 10,000 deep": grown(module(weights(1)), lambda below: module(modules=mapping({"a": below})), 10_000),
    "one model under many names": POP.join(
        (grown(module(), twice, 18), mapping({f"model{number}": recalled(NEXT + 18) for number in range(2000)}))
    ),
    "a module in itself": memoized(call("somebodys.Net"), NEXT)
    + mapping({"_parameters": weights(1), "_buffers": b"}", "_modules": mapping({"a": recalled(NEXT)})})
    + BUILD,
    "many buffers, not persistent, in a list": module(
        buffers=weights(30_000), _non_persistent_buffers_set=items(*(text(f"no{n}") for n in range(30_000)))
    ),
    "a parameter whose name is an endless object": module(mapping([(opaque_key(), WEIGHT)])),
    "a parameter whose name is a number": module(mapping([(integer(1), WEIGHT)])),
    "a key that is an endless object, among the weights": mapping([(text("w"), WEIGHT), (opaque_key(), integer(1))]),
    "a sparse tensor under a key that is an endless object": mapping(
        [(text("w"), WEIGHT), (opaque_key(), call("torch._utils._rebuild_sparse_tensor", WEIGHT))]
    ),
    "a key of four billion characters": mapping([(text("w"), WEIGHT), (long_tuple(), integer(1))]),
    "a key of four billion characters, beside": beside(mapping([(long_tuple(), integer(1))])),
    "a set of four billion characters": beside(b"\x8f(" + long_tuple() + b"\x90"),
    "tensors under long keys in long keys": beside(grown(weights(2000), in_long, 60)),
    "tensors that would have one name": beside(fibonacci()),
    "many state dicts under long keys": grown(
        mapping({f"part{number}": mapping({"w": WEIGHT}) for number in range(5000)}), in_long, 60
    ),
    "one long key in many dicts": beside(items(*[mapping([(LONG, NONE)])] * 20_000)),
    "one set in many places": beside(
        memoized(b"\x8f(" + b"".join(map(integer, range(20_000))) + b"\x90", 9) + POP + items(*[recalled(9)] * 20_000)
    ),
    "one long number in many places": beside(memoized(integer(1 << 12_900), 9) + POP + items(*[recalled(9)] * 300_000)),
    "a device of a long text in many places": beside(
        memoized(call("torch.device", LONG), 9) + POP + items(*[recalled(9)] * 30_000)
    ),
    "a device of an endless tuple": beside(call("torch.device", DAG)),
    "a device of devices without end": beside(
        grown(call("torch.device"), lambda below: call("torch.device", below, below), 60)
    ),
    "a shape 500 deep": beside(call("torch.Size", b")" + b"\x85" * 500)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_take_much_memory_or_time(bomb, tmp_path, read_in_a_process):
    path = torch_file(tmp_path / "bomb.pth", START + BOMBS[bomb])
    assert path.stat().st_size < 3_000_000
    outcome, _, peak = read_in_a_process(path)
    assert outcome in ("read", "BrokenCheckpoint", "UnsafeInput", "UnsupportedCheckpoint")
    assert peak < 500


@pytest.mark.parametrize("layout", ["native", "dense"])
@pytest.mark.parametrize("place", ["beside the weights", "among the weights"])
@pytest.mark.parametrize("kind", ["set", "frozenset", "key", "key in a key", "shape", "device", "list"])
def test_a_number_of_10_000_digits_is_refused_wherever_it_stands(kind, place, layout, tmp_path):
    value = {
        "set": b"\x8f(" + DIGITS + b"\x90",
        "frozenset": call("builtins.frozenset", items(sequence(DIGITS))),
        "key": mapping([(sequence(DIGITS), NONE)]),
        "key in a key": mapping([(sequence(sequence(DIGITS)), NONE)]),
        "shape": call("torch.Size", items(DIGITS)),
        "device": call("torch.device", DIGITS),
        "list": items(items(DIGITS)),
    }[kind]
    root = (
        {"w": WEIGHT, "extra": value} if place == "among the weights" else {"model": mapping({"w": WEIGHT}), "e": value}
    )
    path, output = torch_file(tmp_path / "digits.pth", START + mapping(root)), tmp_path / "out.pth"
    with pytest.raises(UnsupportedCheckpoint, match="too many digits"):
        compress_file(path, output, Recipe(layout=layout), Settings(), command="quantize")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_whole_model_without_tensors_holds_no_state_dict(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="no tensors"):
        open_source(torch_file(tmp_path / "empty.pth", module(modules=mapping({"relu": module()}))))


def test_a_module_shared_by_two_names_gives_both_names_and_one_tensor(tmp_path):
    path = torch_file(tmp_path / "shared.pth", START + grown(module(mapping({"w": WEIGHT})), twice, 2))
    found = read_all(path)
    assert [*found.tensors] == ["a.a.w", "a.b.w", "b.a.w", "b.b.w"]
    assert found.ties == dict.fromkeys(["a.b.w", "b.a.w", "b.b.w"], "a.a.w")


def test_a_class_of_many_models_is_named_once(tmp_path):
    models = mapping({f"net{number}": module(mapping(WEIGHTS)) for number in range(50)} | {"model": module(weights(1))})
    source = open_source(torch_file(tmp_path / "many.pth", START + models))
    source.close()
    assert len(source.warnings) == 1


def test_tensors_beside_that_would_have_one_name_get_different_ones(tmp_path):
    inside = mapping({"a": mapping({"b": WEIGHT}), "a.b": WEIGHT, "a.b'": WEIGHT})
    found = read_all(torch_file(tmp_path / "same.pth", START + beside(inside)))
    assert sorted(found.tensors) == ["optimizer.a.b", "optimizer.a.b'", "optimizer.a.b''", "w"]


def test_a_message_names_a_few_of_many_state_dicts(tmp_path):
    dicts = mapping({f"part{number}": mapping({"w": WEIGHT}) for number in range(5000)})
    path = torch_file(tmp_path / "many.pth", START + dicts)
    for key in (None, "part"):
        with pytest.raises(UsageError) as caught:
            open_source(path, key=key)
        assert len(str(caught.value)) < 1000 + len(str(path))


@pytest.mark.parametrize("limit", ["MOST_IN_MODULES", "MOST_TEXT"])
def test_the_limits_on_whole_models_bite(limit, tmp_path, monkeypatch):
    path: Path = torch_file(tmp_path / "m.pth", START + grown(module(weights(3)), twice, 3))
    read_all(path)
    monkeypatch.setattr(f"modelzip_cli.containers.nesting.{limit}", 10)
    with pytest.raises(BrokenCheckpoint):
        open_source(path)


def test_odd_devices_and_shapes_are_left_out_with_a_warning(tmp_path):
    values = {
        "nested": call("torch.device", items(items(text("a")))),
        "a dict": call("torch.Size", items(mapping({"a": NONE}))),
        "65 numbers": call("torch.Size", items(*map(integer, range(65)))),
        "fine": call("torch.device", text("cuda"), integer(0)),
    }
    source = open_source(torch_file(tmp_path / "odd.pth", mapping({"model": mapping(WEIGHTS), **values})))
    source.close()
    assert [*source.outer.tree] == ["model", "fine"]
    assert "torch.device" in source.warnings[0]
