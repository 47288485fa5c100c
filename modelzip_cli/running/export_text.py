"""The texts inside a torch.export program: torch would evaluate them as Python, here they are read by a grammar.

Sizes (`expr_str`) are what sympy prints with `srepr`, such as `Mul(Integer(4), Symbol('s77', positive=True,
integer=True))`. Torch hands them to `sympify`, which evaluates; so does what comes from it, except where each word is
one of those below. Source: torch/utils/_sympy/functions.py, torch/_export/serde/serialize.py (`_parse_sym_expr`),
torch/utils/_pytree.py (`treespec_loads`), torch/export/_unlift.py (`_convert_guards_code_to_fn`).
"""

from __future__ import annotations

import ast
import re
from typing import Any

from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import BrokenCheckpoint, UnsafeInput, UnsupportedCheckpoint, inert

MOST_TEXT = 10_000  # characters of an expression; the longest seen in exports of published models has 400
MOST_DEPTH = 40
MOST_INTEGER = 1 << 64
MOST_EXPONENT = 8
SYMBOL = re.compile(r"(?:s|u|zf|zuf)\d{1,6}")  # sizes and floats; six digits, because torch counts up to that number
ASSUMPTIONS = frozenset(("positive", "nonnegative", "nonzero", "negative", "integer", "real", "finite", "zero"))
NUMBERS = frozenset(("Integer", "Rational", "Float"))
POWERS = frozenset(("Pow", "PowByNatural", "FloatPow"))
OPAQUE = ("sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "acos", "atan", "exp", "log", "asinh", "log2")
FUNCTIONS = frozenset(
    (
        *("Add", "Mul", "Max", "Min", "Abs", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing"),
        *("FloatTrueDiv", "IntTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt"),
        *("RoundDecimal", "ToFloat", "Identity", "Where", "IsNonOverlappingAndDenseIndicator"),
        *("GreaterThan", "StrictGreaterThan", "LessThan", "StrictLessThan", "Equality", "Unequality"),
        *("And", "Or", "Not"),
        *(f"OpaqueUnaryFn_{name}" for name in OPAQUE),
    )
)
CONSTANTS = frozenset(("true", "false"))
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)
GUARD_FUNCTIONS = frozenset(
    (
        *("max", "min", "abs", "round", "int", "float", "torch.sym_float", "torch._sym_sqrt"),
        *(f"math.{name}" for name in ("floor", "ceil", "trunc", "exp", *OPAQUE)),
    )
)
GUARD_OPERATIONS = (*ARITHMETIC, ast.Mod, ast.Div, ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor)
GUARD_METHODS = ("size", "stride", "storage_offset", "numel", "dim")


def code(what: str, kind: str = "Python code") -> UnsafeInput:
    """The refusal of a program that holds code, without the name of the file; `what`: the route and what was found."""
    return UnsafeInput(
        f"contains {kind} ({inert(what, longest=120)}). It was not run. "
        "Ask its author for a state dict and the class (--arch file.py:Net)."
    )


def expression(value: Any) -> str:
    """Return the text of a size, printed anew. Raises UnsafeInput for anything but arithmetic on sizes.

    Powers have a small literal exponent and no power in their base, so that no text is a bomb.
    """
    tree = _tree(value, "expr_str")
    if not _is_size(tree, MOST_DEPTH, powers=True):
        raise code(f"expr_str: {value}")
    return ast.unparse(tree)


def guard(value: Any) -> None:
    """Check a line of `guards_code`, such as `L['x'].size()[0] == 4`. Raises UnsafeInput for what compares no sizes."""
    if not _is_guard(_tree(value, "guards_code"), MOST_DEPTH):
        raise code(f"guards_code: {value}")


def _tree(value: Any, what: str) -> ast.expr:
    if not isinstance(value, str):
        raise BrokenCheckpoint(f"malformed: {what} is not text")
    if len(value) > MOST_TEXT:
        raise UnsupportedCheckpoint(f"a size is an expression of {len(value):,} characters ({what})")
    try:
        return ast.parse(value, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise code(f"{what}: {value}") from None


def _is_size(node: ast.AST, depth: int, *, powers: bool) -> bool:
    if depth == 0:
        return False
    match node:
        case ast.Constant(value=int(number)) if type(number) is int:
            return number < MOST_INTEGER
        case ast.Name(id=name):
            return bool(SYMBOL.fullmatch(name)) or name in CONSTANTS
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_size(inner, depth - 1, powers=powers)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, ARITHMETIC) and all(
                _is_size(side, depth - 1, powers=powers) for side in (left, right)
            )
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            return bool(SYMBOL.fullmatch(name)) and all(map(_is_assumption, keywords))
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(number))], keywords=keywords):
            return bool(re.fullmatch(r"-?\d{1,60}(\.\d{1,60})?(e[-+]?\d{1,3})?", number)) and _is_precision(keywords)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in NUMBERS:
            return all(_is_integer(argument) for argument in arguments)
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if name in POWERS:
            return powers and _is_size(base, depth - 1, powers=False) and _is_small(exponent)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return all(_is_size(argument, depth - 1, powers=powers) for argument in arguments)
    return False


def _is_assumption(keyword: ast.keyword) -> bool:
    return keyword.arg in ASSUMPTIONS and isinstance(keyword.value, ast.Constant) and type(keyword.value.value) is bool


def _is_precision(keywords: list[ast.keyword]) -> bool:
    match keywords:
        case [] | [ast.keyword(arg="precision", value=ast.Constant(value=53))]:
            return True
    return False


def _integer(node: ast.AST) -> int | None:
    match node:
        case ast.Constant(value=int(number)) if type(number) is int:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))) if type(number) is int:
            return -number
    return None


def _is_integer(node: ast.AST) -> bool:
    number = _integer(node)
    return number is not None and abs(number) < MOST_INTEGER


def _is_small(node: ast.AST) -> bool:
    """Whether a node is an exponent that is written out, as `2` or as `Integer(2)`."""
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            node = inner
    number = _integer(node)
    return number is not None and -MOST_EXPONENT <= number <= MOST_EXPONENT


def _is_guard(node: ast.AST, depth: int) -> bool:
    if depth == 0:
        return False
    match node:
        case ast.Constant(value=value):
            return isinstance(value, (bool, int, float, type(None)))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=inner):
            return _is_guard(inner, depth - 1)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, GUARD_OPERATIONS) and all(_is_guard(side, depth - 1) for side in (left, right))
        case ast.BoolOp(values=values):
            return all(_is_guard(value, depth - 1) for value in values)
        case ast.Compare(left=left, comparators=others):
            return all(_is_guard(side, depth - 1) for side in (left, *others))
        case ast.IfExp(test=test, body=body, orelse=other):
            return all(_is_guard(part, depth - 1) for part in (test, body, other))
        case ast.Call(func=ast.Attribute(value=inner, attr=method), args=[], keywords=[]) if method in GUARD_METHODS:
            return _is_input(inner, depth - 1)
        case ast.Call(func=function, args=arguments, keywords=[]) if ast.unparse(function) in GUARD_FUNCTIONS:
            return all(_is_guard(argument, depth - 1) for argument in arguments)
        case ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan"):
            return True
        case ast.Subscript(value=inner, slice=ast.Constant(value=int())) if isinstance(inner, ast.Call):
            return _is_guard(inner, depth - 1)  # x.size()[0]
    return _is_input(node, depth - 1)


def _is_input(node: ast.AST, depth: int) -> bool:
    """Whether a node is an input: `L['x']`, or a part of one: `L['x'][0]['mask'].values`."""
    match node:
        case _ if depth <= 0:
            return False
        case ast.Name(id="L"):
            return True
        case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int())):
            return _is_input(inner, depth - 1)
        case ast.Attribute(value=inner, attr=name) if not name.startswith("_"):
            return _is_input(inner, depth - 1)
    return False


def leaves(value: Any) -> list[str | None]:
    """How many values a tree of inputs or outputs (`in_spec`, `out_spec`) has: the key of each at the root, or None.

    The text is JSON; classes that it names are not looked up. Raises UnsafeInput where torch would import something
    named in it: an enum, or the factory of a defaultdict.
    """
    try:
        protocol, tree = parse(value)
        if protocol != 1:
            raise UnsupportedCheckpoint("its inputs and outputs are described in a way that modelzip does not know")
        _check_context(tree)
        keys = _keys(tree)
        counts = [_count(child) for child in tree["children_spec"]] if tree["type"] else [1]
    except NotStrict as error:
        raise BrokenCheckpoint(f"malformed: the tree of inputs or outputs: {inert(str(error), longest=100)}") from None
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        raise BrokenCheckpoint("malformed: the tree of inputs or outputs") from None
    return [key for key, count in zip(keys or [None] * len(counts), counts, strict=True) for _ in range(count)]


def _keys(tree: dict[str, Any]) -> list[str | None]:
    """The names of the children of a dict or of a class with named fields; [] where they have none."""
    context = _context(tree)
    if not isinstance(context, list) or len(context) != len(tree["children_spec"]):
        return []
    return [key if isinstance(key, str) else None for key in context]


def _context(tree: dict[str, Any]) -> Any:
    text = tree["context"]
    return parse(text) if isinstance(text, str) and text[:1] in "[{" else text


def _count(tree: dict[str, Any]) -> int:
    return 1 if tree["type"] is None else sum(map(_count, tree["children_spec"]))


def _check_context(tree: dict[str, Any]) -> None:
    _check_import(_context(tree))
    for child in tree["children_spec"]:
        _check_context(child)


def _check_import(context: Any) -> None:
    if isinstance(context, dict):
        if "__enum__" in context:
            raise code(f"in_spec or out_spec: imports {context.get('fqn')}")
        factory = context.get("default_factory_module")
        if factory not in (None, "builtins"):
            raise code(f"in_spec or out_spec: imports {factory}")
    for inner in context.values() if isinstance(context, dict) else context if isinstance(context, list) else ():
        _check_import(inner)
