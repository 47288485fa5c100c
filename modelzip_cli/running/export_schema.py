"""What of the JSON in a torch.export archive is kept: each field that torch needs, checked, and nothing else.

A rule takes a value as it stands in the file and returns the one that torch will see. Names become Python identifiers
in the code that torch.fx generates and runs, so they are held to that. Messages come without the name of the file.
Source: torch/_export/serde/schema.py (version 8.20), whose classes the rules are called after; torch/fx/graph.py.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any

from modelzip_cli.containers.torch_export import SCALAR_TYPES
from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, inert
from modelzip_cli.running.export_operators import operator
from modelzip_cli.running.export_text import SYMBOL, code, expression, guard, leaves

Rule = Callable[[Any], Any]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
PATH = re.compile(r"(?:(?!__)[^\x00-\x1f\x7f\"'\\.]{1,200})(?:\.(?!__)[^\x00-\x1f\x7f\"'\\.]{1,200})*")
_PART = r"[^,;\[\]()\x00-\x1f\x7f]{0,500}"
STACK = re.compile(rf"(?:{_PART},{_PART},{_PART})(?:;{_PART},{_PART},{_PART})*")  # key, path and class of each module
FILE = re.compile(r"[A-Za-z0-9_]{1,80}")
NON_FINITE = ("Infinity", "-Infinity", "NaN")  # as torch writes them
DIALECTS = ("ATEN", "TRAINING")
STRIDED = 7
LARGEST = 1 << 63


def malformed(what: str) -> BrokenCheckpoint:
    """The refusal of a program that torch did not write so."""
    return BrokenCheckpoint(f"its program is malformed: {inert(what, longest=120)}")


# Rules for values


def whole(value: Any) -> int:
    """An integer of 64 bits."""
    if type(value) is not int or not -LARGEST <= value < LARGEST:
        raise malformed("a number is not whole, or out of range")
    return value


def number(value: Any) -> float | str:
    """A float, as a number or as the text that torch writes for those JSON lacks."""
    if type(value) not in (int, float) and value not in NON_FINITE:
        raise malformed("a number is none")
    return value  # type: ignore[no-any-return]


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise malformed("a flag is neither true nor false")
    return value


def text(value: Any) -> str:
    """Text that an operator takes, such as the name of a mode; torch.fx writes it as a quoted literal."""
    if not isinstance(value, str) or len(value) > 2000 or not value.isascii():
        raise malformed("a text is none, or too long")
    return value


def name(value: Any) -> str:
    """What a node is called: torch.fx writes that of an input into Python code as it is."""
    if not isinstance(value, str):
        raise malformed("a name is not text")
    if not NAME.fullmatch(value) or keyword.iskeyword(value):
        raise code(f"name of a node: {value}")
    return value


def keyword_name(value: Any) -> str:
    """What an argument of an operator is called; empty where it has no name. One operator has an argument `from`."""
    return value if value in ("", "from") else name(value)


def path(value: Any) -> str:
    """The name of a parameter: torch.fx writes its parts into Python code, between double quotes where it has to."""
    if not isinstance(value, str):
        raise malformed("a name is not text")
    if not PATH.fullmatch(value):
        raise code(f"name of a parameter: {value}")
    return value


def symbol(value: Any) -> str:
    """The name of a size, such as `s77`."""
    if not isinstance(value, str) or not SYMBOL.fullmatch(value):
        raise malformed("a size has a name that torch does not give")
    return value


def file_name(value: Any) -> str:
    """The name of an entry of the archive, without its folder."""
    if not isinstance(value, str) or not FILE.fullmatch(value):
        raise malformed("a file of the archive has a name that torch does not give")
    return value


# Rules made of rules


def always(kept: Any) -> Rule:
    """Whatever the file says, `kept`."""
    return lambda value: kept


def one_of(*allowed: Any) -> Rule:
    """One of a few numbers or words."""

    def clean(value: Any) -> Any:
        if type(value) not in (int, str) or value not in allowed:
            raise malformed("a choice is not one of those known")
        return value

    return clean


def nullable(rule: Rule) -> Rule:
    """A value or null."""
    return lambda value: None if value is None else rule(value)


def many(rule: Rule) -> Rule:
    """A list."""

    def clean(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise malformed("a list is none")
        return [rule(item) for item in value]

    return clean


def mapping(key_rule: Rule, rule: Rule) -> Rule:
    """A dict with any keys."""

    def clean(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise malformed("a mapping is none")
        return {key_rule(key): rule(item) for key, item in value.items()}

    return clean


def record(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """A dict with these keys; others are dropped, as are optional ones that are null."""

    def clean(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise malformed("a record is none")
        missing = required.keys() - value.keys()
        if missing:
            raise malformed(f"{min(missing)} is missing")
        kept = {key: rule(value[key]) for key, rule in required.items()}
        return kept | {key: rule(value[key]) for key, rule in (optional or {}).items() if value.get(key) is not None}

    return clean


def union(**kinds: Rule) -> Rule:
    """A dict with one key, which says the kind of its value."""

    def clean(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) != 1:
            raise malformed("a value of no kind")
        ((kind, inner),) = value.items()
        if kind not in kinds:
            raise malformed(f"a value of the unknown kind {kind}")
        return {kind: kinds[kind](inner)}

    return clean


def runs(what: str) -> Rule:
    """What torch would build by running code."""

    def refuse(value: Any) -> Any:
        raise code(what)

    return refuse


def unsupported(what: str) -> Rule:
    """What is honest, but not a model that modelzip runs."""

    def refuse(value: Any) -> Any:
        raise UnsupportedCheckpoint(f"its program has {what}: export the model alone, in evaluation mode")

    return refuse


# The schema

DEVICE = always({"type": "cpu", "index": None})  # where it was exported does not matter
EXPRESSION = record({"expr_str": expression}, {"hint": union(as_int=whole, as_bool=flag, as_float=number)})
SYM_INT = union(as_expr=EXPRESSION, as_int=whole)
SYM_FLOAT = union(as_expr=EXPRESSION, as_float=number)
SYM_BOOL = union(as_expr=EXPRESSION, as_bool=flag)
TENSOR_META = record(
    {
        "dtype": one_of(*SCALAR_TYPES),
        "sizes": many(SYM_INT),
        "requires_grad": flag,
        "device": DEVICE,
        "strides": many(SYM_INT),
        "storage_offset": SYM_INT,
        "layout": one_of(STRIDED),
    }
)
TENSOR = record({"name": name})
SYM_INT_ARGUMENT = union(as_name=name, as_int=whole)
SYM_FLOAT_ARGUMENT = union(as_name=name, as_float=number)
SYM_BOOL_ARGUMENT = union(as_name=name, as_bool=flag)
OPTIONAL_TENSOR = union(as_tensor=TENSOR, as_none=flag)


def _graph(value: Any) -> Any:
    return GRAPH(value)


ARGUMENT = union(
    as_none=flag,
    as_tensor=TENSOR,
    as_tensors=many(TENSOR),
    as_int=whole,
    as_ints=many(whole),
    as_float=number,
    as_floats=many(number),
    as_string=text,
    as_strings=many(text),
    as_sym_int=SYM_INT_ARGUMENT,
    as_sym_ints=many(SYM_INT_ARGUMENT),
    as_scalar_type=one_of(*SCALAR_TYPES),
    as_memory_format=one_of(*range(5)),
    as_layout=one_of(STRIDED),
    as_device=DEVICE,
    as_bool=flag,
    as_bools=many(flag),
    as_sym_bool=SYM_BOOL_ARGUMENT,
    as_sym_bools=many(SYM_BOOL_ARGUMENT),
    as_graph=record({"name": name, "graph": _graph}),
    as_optional_tensors=many(OPTIONAL_TENSOR),
    as_optional_tensor=OPTIONAL_TENSOR,
    as_sym_float=SYM_FLOAT_ARGUMENT,
    as_sym_floats=many(SYM_FLOAT_ARGUMENT),
    as_complex=record({"real": number, "imag": number}),
    as_nested_tensors=many(many(TENSOR)),
    as_int_lists=many(many(whole)),
    as_float_lists=many(many(number)),
    as_custom_obj=runs("an object of a custom class"),
    as_operator=runs("a function as a value"),  # found by name, anywhere in torch
    as_string_to_argument=unsupported("a mapping as an argument"),
)


def _metadata(value: Any) -> dict[str, str]:
    """Of what is known about a node only the modules that it comes from; source lines and functions are dropped."""
    stack = value.get("nn_module_stack") if isinstance(value, dict) else None
    return {"nn_module_stack": stack} if isinstance(stack, str) and STACK.fullmatch(stack) else {}


NODE = record(
    {
        "target": operator,
        "inputs": many(record({"name": keyword_name, "arg": ARGUMENT}, {"kind": one_of(0, 1, 2)})),
        "outputs": many(ARGUMENT),
        "metadata": _metadata,
    },
    {"is_hop_single_tensor_return": flag, "name": name},
)
GRAPH = record(
    {
        "inputs": many(ARGUMENT),
        "outputs": many(ARGUMENT),
        "nodes": many(NODE),
        "tensor_values": mapping(name, TENSOR_META),
        "sym_int_values": mapping(name, SYM_INT),
        "sym_bool_values": mapping(name, SYM_BOOL),
    },
    {
        "is_single_tensor_return": flag,
        "sym_float_values": mapping(name, SYM_FLOAT),
        "custom_obj_values": mapping(name, runs("an object of a custom class")),
    },
)
CONSTANT = union(as_none=flag, as_int=whole, as_float=number, as_string=text, as_bool=flag)
INPUT_SPEC = union(
    user_input=record({"arg": ARGUMENT}),
    parameter=record({"arg": TENSOR, "parameter_name": path}),
    buffer=record({"arg": TENSOR, "buffer_name": path, "persistent": flag}),
    tensor_constant=record({"arg": TENSOR, "tensor_constant_name": path}),
    constant_input=record({"name": name, "value": CONSTANT}),
    custom_obj=runs("an object of a custom class"),
    token=unsupported("side effects"),
)
OUTPUT_SPEC = union(
    user_output=record({"arg": ARGUMENT}),
    buffer_mutation=record({"arg": TENSOR, "buffer_name": path}),
    loss_output=unsupported("a loss"),
    gradient_to_parameter=unsupported("gradients"),
    gradient_to_user_input=unsupported("gradients"),
    user_input_mutation=unsupported("inputs that it changes"),
    parameter_mutation=unsupported("parameters that it changes"),
    token=unsupported("side effects"),
)


def _checked(check: Callable[[Any], Any]) -> Rule:
    """Check, and keep the value as it is: it is replaced before torch sees the program."""

    def clean(value: Any) -> Any:
        check(value)
        return value

    return clean


CALL_SIGNATURE = record(
    {"in_spec": _checked(leaves), "out_spec": _checked(leaves)},
    {"forward_arg_names": many(name)},
)
PROGRAM = record(
    {
        "graph_module": record(
            {
                "graph": GRAPH,
                "signature": record({"input_specs": many(INPUT_SPEC), "output_specs": many(OUTPUT_SPEC)}),
                "module_call_graph": many(record({}, {"signature": CALL_SIGNATURE})),
            }
        ),
        "opset_version": record({"aten": whole}),
        "range_constraints": mapping(symbol, record({"min_val": nullable(whole), "max_val": nullable(whole)})),
        "schema_version": record({"major": whole, "minor": whole}),
    },
    {"verifiers": many(one_of(*DIALECTS)), "torch_version": text, "guards_code": many(_checked(guard))},
)


def payloads(section: str, prefix: str) -> Rule:
    """The list of tensors in `data/SECTION/`; entries whose name does not begin with `prefix` are custom objects."""

    def no_pickle(value: Any) -> bool:
        if value is not False:
            raise code(f"{section}: pickle")
        return False

    def entry(value: Any) -> str:
        if not file_name(value).startswith(prefix):
            raise code(f"{section}: an object of a custom class, {value}")
        return str(value)

    payload = record({"use_pickle": no_pickle, "path_name": entry, "is_param": flag, "tensor_meta": TENSOR_META})
    return record({"config": mapping(path, payload)})
