"""Exported programs (.pt2) that would run a command when torch loads or runs them: modelzip refuses each, unrun.

Each forgery is also given to torch, which has to run the command: else it would test nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsafeInput, UnsupportedCheckpoint
from modelzip_cli.running.export import Exported, load_export
from tests.exports import PROGRAM, archive_of, changed, entries, small
from tests.hostile.makers import MARK, POP, REDUCE, Member, call, pickle_of, sequence, text, torch_members, zip_of

MODULE = "canary_of_an_exported_program"
SAMPLES = "data/sample_inputs/model.pt"


class Canary:
    """A file that appears when a forged program gets what it wants: by a command, an expression or a pickle."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary"
        self.command = f"touch {self.path}"
        self.python = f"__import__('os').system('{self.command}')"
        self.without_dots = f'getattr(__import__("os"), "system")({_without_dots(self.command)})'
        self.pickle = pickle_of(call("posix.system", text(self.command)))

    def lives(self) -> bool:
        return not self.path.exists()


def _without_dots(value: str) -> str:
    """A literal in an expression that has no dot and no single quote."""
    return f'getattr(getattr(bytes, "fromhex")("{value.encode().hex()}"), "decode")()'


@pytest.fixture
def canary(tmp_path, monkeypatch):
    found = Canary(tmp_path)
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(found.path)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield found
    sys.modules.pop(MODULE, None)


# Forgeries


def with_entries(**content: bytes) -> bytes:
    return archive_of(entries(small()) | content)


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def node(program: Any, target: str) -> Any:
    return next(node for node in graph(program)["nodes"] if node["target"].startswith(target))


def pickled_weight(canary: Canary) -> bytes:
    def change(weights: Any) -> None:
        weights["config"]["layer.weight"]["use_pickle"] = True

    return archive_of(entries(changed(small(), weights=change)) | {"data/weights/weight_0": canary.pickle})


def constant(path_name: str, *, use_pickle: bool) -> Callable[[Canary], bytes]:
    def forge(canary: Canary) -> bytes:
        meta = json.loads(entries(small())["data/weights/model_weights_config.json"])["config"]["layer.weight"]
        meta |= {"path_name": path_name, "is_param": False, "use_pickle": use_pickle}
        archive = changed(small(), constants=lambda constants: constants["config"].update({"c": meta}))
        padded = canary.pickle.ljust(-(-len(canary.pickle) // 48) * 48, b"\0")  # a whole number of the tensor's bytes
        return archive_of(entries(archive) | {f"data/constants/{path_name}": padded})

    return forge


def samples(*opcodes: bytes) -> bytes:
    """A file of torch.save around a pickle, as the sample inputs of the program."""
    return with_entries(**{SAMPLES: zip_of(torch_members(pickle_of(*opcodes)))})


def popped(canary: Canary) -> bytes:
    """The command leaves nothing in what the pickle stands for."""
    return samples(call("posix.system", text(canary.command)), POP, sequence())


def by_stack_global(canary: Canary) -> bytes:
    return samples(text("posix"), text("system"), b"\x93", sequence(text(canary.command)), REDUCE)


def by_old_opcode(canary: Canary) -> bytes:
    """INST, which torch has not written in this century."""
    return samples(MARK, text(canary.command), b"iposix\nsystem\n")


def expression(places: Callable[[Any], list[Any]], form: str = "{}") -> Callable[[Canary], bytes]:
    """A size that is Python; `places`: the dicts with a size, of which each is changed."""

    def forge(canary: Canary) -> bytes:
        def change(program: Any) -> None:
            for place in places(program):
                place["as_expr"] = {"expr_str": form.format(canary.python), "hint": None}

        return changed(small(), program=change)

    return forge


def sizes(field: str) -> Callable[[Any], list[Any]]:
    def find(program: Any) -> list[Any]:
        return [size for meta in graph(program)["tensor_values"].values() for size in meta[field] if "as_expr" in size]

    return find


def some_strides(program: Any) -> list[Any]:
    stride = graph(program)["tensor_values"]["x"]["strides"][0]
    stride.clear()
    return [stride]


def sym_ints(program: Any) -> list[Any]:
    return list(graph(program)["sym_int_values"].values())


def guards(canary: Canary) -> bytes:
    return changed(small(), program=lambda program: program["guards_code"].append(f"{canary.python} == 0"))


def node_name(canary: Canary) -> bytes:
    """It can be read and assigned to: an item of a list."""
    content = entries(small())
    name = json.dumps(f"[0][{canary.python}]").encode()
    return archive_of(content | {PROGRAM: content[PROGRAM].replace(b'"linear"', name)})


def input_name(canary: Canary) -> bytes:
    """One more input, with a default."""

    def change(program: Any) -> None:
        extra = {"as_tensor": {"name": f"y={canary.python}"}}
        graph(program)["inputs"].append(extra)
        graph(program)["tensor_values"][extra["as_tensor"]["name"]] = graph(program)["tensor_values"]["x"]
        program["graph_module"]["signature"]["input_specs"].append({"user_input": {"arg": extra}})

    return changed(small(), program=change)


def parameter(canary: Canary) -> bytes:
    """Torch writes `getattr(self.layer, "...")`."""
    evil = f'layer.weight", {canary.without_dots}) or getattr(self, "training'
    content = entries(small())
    for key in (PROGRAM, "data/weights/model_weights_config.json"):
        content[key] = content[key].replace(b'"layer.weight"', json.dumps(evil).encode())
    return archive_of(content)


def argument_names(canary: Canary) -> bytes:
    def change(program: Any) -> None:
        call_of(program)["forward_arg_names"] = ["x", f"y={canary.python}"]

    return changed(small(), program=change)


def call_of(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def spec(which: str, kind: str, context: Any) -> Callable[[Canary], bytes]:
    tree = {"type": kind, "context": context, "children_spec": []}

    def forge(canary: Canary) -> bytes:
        return changed(small(), program=lambda program: call_of(program).update({which: json.dumps([1, tree])}))

    return forge


FACTORY = {"default_factory_module": MODULE, "default_factory_name": "x", "dict_context": []}
ENUM = json.dumps([{"__enum__": True, "fqn": f"{MODULE}:x", "name": "x"}])


def positional(**argument: Any) -> dict[str, Any]:
    return {"name": "", "arg": argument, "kind": 1}


def last_node(target: str, arguments: Callable[[Canary], list[Any]]) -> Callable[[Canary], bytes]:
    def forge(canary: Canary) -> bytes:
        def change(program: Any) -> None:
            node(program, "torch.ops.aten.linear").update(
                target=target, inputs=arguments(canary), is_hop_single_tensor_return=True
            )

        return changed(small(), program=change)

    return forge


def function_argument(canary: Canary) -> list[Any]:
    """An operator that calls what it is given: `os.system`, with the command."""
    return [
        positional(as_bool=False),
        positional(as_operator="torch.os.system"),
        positional(as_string=canary.command),
    ]


def new_file(canary: Canary) -> list[Any]:
    values = {
        "filename": {"as_string": str(canary.path)},
        "shared": {"as_bool": True},
        "size": {"as_int": 12},
        "dtype": {"as_scalar_type": 7},
    }
    return [{"name": key, "arg": value, "kind": 2} for key, value in values.items()]


ROUTES: dict[str, tuple[Callable[[Canary], bytes], str]] = {
    "weights": (pickled_weight, "weights: pickle"),
    "constants": (constant("tensor_0", use_pickle=True), "constants: pickle"),
    "an opaque object": (constant("opaque_obj_0", use_pickle=True), "constants: pickle"),
    "an opaque object that says it is a tensor": (constant("opaque_obj_0", use_pickle=False), "a custom class"),
    "sample inputs": (lambda canary: samples(canary.pickle[2:-1]), "sample_inputs: pickle, posix.system"),
    "sample inputs without a zip": (lambda canary: with_entries(**{SAMPLES: canary.pickle}), "posix.system"),
    "sample inputs with a popped value": (popped, "posix.system"),
    "sample inputs with a name from the stack": (by_stack_global, "posix.system"),
    "sample inputs with an old opcode": (by_old_opcode, "sample_inputs: a pickle of a kind"),
    "a size": (expression(sizes("sizes")), "expr_str: __import__"),
    "a stride": (expression(some_strides), "expr_str: __import__"),
    "a computed size": (expression(sym_ints), "expr_str: __import__"),
    "a size in a sum": (expression(sizes("sizes"), "Add(Integer(1), {})"), "expr_str: Add"),
    "a size in a symbol": (expression(sizes("sizes"), "Symbol('s77', integer={})"), "expr_str: Symbol"),
    "a guard": (guards, "guards_code: __import__"),
    "the name of an input": (input_name, "name of a node: y=__import__"),
    "the name of a parameter": (parameter, "name of a parameter: layer.weight"),
    "the names of arguments": (argument_names, "name of a node: y=__import__"),
    "a defaultdict": (spec("out_spec", "collections.defaultdict", FACTORY), f"imports {MODULE}"),
    "an enum": (spec("out_spec", "builtins.dict", ENUM), f"imports {MODULE}"),
    "an enum in the inputs": (spec("in_spec", "builtins.dict", ENUM), f"imports {MODULE}"),
    "an operator that makes files": (last_node("torch.ops.aten.from_file.default", new_file), "from_file"),
}
each_route = pytest.mark.parametrize("route", ROUTES)


def one_line(error: ModelzipError) -> bool:
    return str(error).isprintable() and len(str(error)) < 600


@each_route
def test_a_program_that_runs_code_is_refused_before_it_does(route, canary, tmp_path):
    forge, reason = ROUTES[route]
    (tmp_path / "model.pt2").write_bytes(forge(canary))
    with pytest.raises(UnsafeInput) as caught:
        load_export(tmp_path / "model.pt2")
    assert canary.lives()
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(f"{tmp_path / 'model.pt2'}: contains ")
    assert reason in str(caught.value)
    assert "was not run" in str(caught.value)
    assert one_line(caught.value)


@each_route
def test_torch_would_run_the_code(route, canary):
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(io.BytesIO(ROUTES[route][0](canary))).module()(torch.ones(2, 8))
    assert not canary.lives()


def no_arguments(canary: Canary) -> list[Any]:
    return []


def target(word: str) -> tuple[Callable[[Canary], bytes], str]:
    return last_node(word, no_arguments), "contains a call that modelzip does not make"


UNRUN = {  # found by name, then refused or not called, by torch 2.13: nothing says that it stays so
    "the name of a node": (node_name, "name of a node: [0][__import__"),
    "a function as an argument": (
        last_node("torch.ops.higher_order.wrap_with_set_grad_enabled", function_argument),
        "a function as a value",
    ),
    "a function of another module": target("torch.os.system"),
    "a function of Python": target("_operator.call"),
    "an operator of another library": target("torch.ops.torchvision.nms.default"),
    "an operator with a graph": target("torch.ops.higher_order.while_loop"),
    "an attribute of an operator": target("torch.ops.aten.add.Tensor.__call__"),
    "an extension": target("#canary:linear"),
    "a private operator": target("torch.ops.aten._print.default"),
    "no operator at all": target(""),
}


@pytest.mark.parametrize("kind", UNRUN)
def test_what_torch_could_come_to_run_is_refused_too(kind, canary, tmp_path):
    forge, reason = UNRUN[kind]
    (tmp_path / "model.pt2").write_bytes(forge(canary))
    with pytest.raises(UnsafeInput) as caught:
        load_export(tmp_path / "model.pt2")
    assert reason in str(caught.value)
    assert one_line(caught.value)
    assert canary.lives()


def test_an_operator_that_this_torch_lacks_is_named(tmp_path):
    archive = last_node("torch.ops.aten.linear.of_tomorrow", no_arguments)
    (tmp_path / "model.pt2").write_bytes(archive(Canary(tmp_path)))
    with pytest.raises(UnsupportedCheckpoint, match=r"aten::linear\.of_tomorrow"):
        load_export(tmp_path / "model.pt2")


def test_a_pickle_of_weights_from_an_older_torch_is_not_loaded(canary, tmp_path):
    (tmp_path / "model.pt2").write_bytes(with_entries(**{"data/weights/model.pt": canary.pickle}))
    with pytest.raises(UnsupportedCheckpoint, match=r"its weights are a pickle, as torch 2\.8 wrote them"):
        load_export(tmp_path / "model.pt2")
    assert canary.lives()


def test_a_library_in_the_archive_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_bytes(with_entries(**{"data/aotinductor/model/model.so": b"\x7fELF"}))
    with pytest.raises(UnsafeInput, match=r"contains compiled code \(data/aotinductor/model/model\.so\)"):
        load_export(tmp_path / "model.pt2")


def keyword_inputs(canary: Canary) -> bytes:
    leaf = {"type": None, "context": None, "children_spec": []}
    none = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    named = {"type": "builtins.dict", "context": json.dumps([f"x={canary.python}"]), "children_spec": [leaf]}
    tree = {"type": "builtins.tuple", "context": "null", "children_spec": [none, named]}

    def change(program: Any) -> None:
        call_of(program).update(in_spec=json.dumps([1, tree]), forward_arg_names=None)

    return changed(small(), program=change)


def metadata(canary: Canary) -> bytes:
    def change(program: Any) -> None:
        for found in graph(program)["nodes"]:
            found["metadata"] = {
                "stack_trace": f'File "x", line 1, in y\n{canary.python}\n',
                "source_fn_stack": "x,torch.os.system",
                "nn_module_stack": f"a,b,c\n{canary.python}",
                "from_node": json.dumps([{"name": canary.python}]),
                "custom": json.dumps({"x": canary.python}),
            }

    return changed(small(), program=change)


@pytest.mark.parametrize("forge", [keyword_inputs, metadata])
def test_what_torch_does_not_need_is_dropped(forge, canary, tmp_path):
    (tmp_path / "model.pt2").write_bytes(forge(canary))
    (tmp_path / "honest.pt2").write_bytes(small())
    x = torch.rand(2, 8)
    assert torch.equal(load_export(tmp_path / "model.pt2").module(x), load_export(tmp_path / "honest.pt2").module(x))
    assert canary.lives()


# Sizes


def loaded_with_size(text: str, folder: Path) -> Exported:
    def change(program: Any) -> None:
        for size in sizes("sizes")(program):
            size["as_expr"]["expr_str"] = text

    (folder / "model.pt2").write_bytes(changed(small(), program=change))
    return load_export(folder / "model.pt2")


S = "Symbol('s77', positive=True, integer=True)"
BOMBS = {
    "a tower of powers": f"Pow({S}, Pow(Integer(9), Pow(Integer(9), Integer(9))))",
    "a power of a power": f"Pow(Pow({S}, Integer(8)), Integer(8))",
    "a large exponent": f"Pow({S}, Integer(1000000))",
    "an exponent that is a size": f"Pow(Integer(9), {S})",
    "an operator for powers": "9 ** 9 ** 9",
    "a shift": f"LShift({S}, Integer(1000000))",
    "a long number": f"Integer({'9' * 4000})",
    "a deep expression": "Add(Integer(1), " * 50 + S + ")" * 50,
    "more brackets than Python takes": "(" * 4000 + "1" + ")" * 4000,
    "a factorial": "factorial(Integer(100000))",
    "an attribute": f"{S}.name",
    "an item": f"({S},)[0]",
    "a keyword": "Symbol('s77', positive=True, **{})",
    "a name": "s77 if True else oo",
    "a lambda": "(lambda: 1)()",
    "a string": "'s77'",
    "another symbol": "Symbol('x', integer=True)",
    "two expressions": f"{S}; {S}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_size_that_is_no_arithmetic_is_refused(bomb, tmp_path):
    with pytest.raises(UnsafeInput, match="expr_str"):
        loaded_with_size(BOMBS[bomb], tmp_path)


def test_a_size_that_is_too_long_to_be_one_is_refused(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="an expression of 11,9"):
        loaded_with_size(" + ".join(["s77"] * 2000), tmp_path)


@pytest.mark.parametrize(
    "size",
    [
        f"FloorDiv(Add({S}, PythonMod(Mul(Integer(-1), {S}), Integer(4))), Integer(4))",
        f"Max(Integer(1), Min(Integer(8), Mul(Integer(8), {S})), Pow({S}, Integer(2)))",
        f"Add(Pow({S}, Integer(2)), Mod(Mul(Integer(3), {S}), Integer(5)))",
        "4 * (s77 + 1) // 2 - 1",
    ],
)
def test_a_size_that_torch_writes_is_taken(size, tmp_path):
    assert loaded_with_size(size, tmp_path).wanted.batch is None


# Damage


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ({"major": 8, "minor": 1 << 20}, r"written by a newer torch\.export schema \(8\.1048576\); update torch"),
        ({"major": 99, "minor": 0}, r"written by a newer torch\.export schema \(99\.0\); update torch"),
        ({"major": 7, "minor": 3}, r"written by an older torch\.export schema \(7\.3\)"),
    ],
)
def test_another_schema_is_named(version, message, tmp_path):
    (tmp_path / "model.pt2").write_bytes(
        changed(small(), program=lambda program: program.update(schema_version=version))
    )
    with pytest.raises(UnsupportedCheckpoint, match=message):
        load_export(tmp_path / "model.pt2")


def test_entries_that_are_missing_are_named(tmp_path):
    content = entries(small())
    for missing in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        kept = {key: data for key, data in content.items() if key != missing}
        (tmp_path / "model.pt2").write_bytes(archive_of(kept))
        with pytest.raises(BrokenCheckpoint, match=f"{missing} is missing"):
            load_export(tmp_path / "model.pt2")


@pytest.mark.parametrize("names", [[], ["models/a.json", "models/b.json"]])
def test_an_archive_without_exactly_one_program_is_refused(names, tmp_path):
    content = {key: data for key, data in entries(small()).items() if key != PROGRAM}
    (tmp_path / "model.pt2").write_bytes(archive_of(content | dict.fromkeys(names, b"{}")))
    with pytest.raises(UnsupportedCheckpoint, match=f"with {len(names)} programs"):
        load_export(tmp_path / "model.pt2")


def test_a_damaged_weight_is_found_by_its_checksum(tmp_path):
    content = entries(small())
    members = [
        Member(f"m/{key}", data, crc=1 if key == "data/weights/weight_0" else None) for key, data in content.items()
    ]
    (tmp_path / "model.pt2").write_bytes(zip_of(members))
    with pytest.raises(BrokenCheckpoint, match="weight_0: its checksum does not match"):
        load_export(tmp_path / "model.pt2")


def outcome(archive: bytes, folder: Path) -> Exported | None:
    """The model, or None for a refusal in one line. Anything else fails the test."""
    (folder / "model.pt2").write_bytes(archive)
    try:
        return load_export(folder / "model.pt2")
    except ModelzipError as error:
        assert one_line(error)
        return None


JSON_ENTRIES = (PROGRAM, "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")


@given(key=st.sampled_from(JSON_ENTRIES), place=st.integers(0, 1 << 20), byte=st.integers(0, 255))
def test_a_flipped_byte_gives_a_model_or_a_refusal(key, place, byte, tmp_path_factory):
    content = entries(small())
    data = bytearray(content[key])
    data[place % len(data)] = byte
    outcome(archive_of(content | {key: bytes(data)}), tmp_path_factory.getbasetemp())


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place in a JSON value, as a container with a key."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in inner] + [place for _, item in inner for place in places(item)]


ODD = [None, True, -1, 0, 1 << 40, 1 << 70, 1.5, "", "x", "linear", [], {}, [[]], {"as_int": 3}, {"as_none": True}]


@settings(max_examples=60)
@given(place=st.integers(0, 1 << 20), value=st.sampled_from(ODD))
def test_an_odd_value_anywhere_in_the_program_gives_a_model_or_a_refusal(place, value, tmp_path_factory):
    def change(program: Any) -> None:
        found = places(program)
        container, key = found[place % len(found)]
        container[key] = value

    outcome(changed(small(), program=change), tmp_path_factory.getbasetemp())


def test_the_honest_file_that_the_others_are_made_from_is_loaded(tmp_path):
    (tmp_path / "model.pt2").write_bytes(archive_of(entries(small())))
    assert load_export(tmp_path / "model.pt2").module(torch.ones(3, 8)).shape == (6, 3)
