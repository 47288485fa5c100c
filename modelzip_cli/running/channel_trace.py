"""A walk through an exported graph that finds out which axis of which value holds which channels.

Parameters are values like all others: each axis of one starts as channels of its own, and what the graph does with
them says which are the same. What an operator does to channels stands in `channel_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter, getitem
from typing import Any, Literal

import torch
from sympy import nextprime  # type: ignore[import-untyped]
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from modelzip_cli.errors import ModelDoesNotRun, inert
from modelzip_cli.running.channel_spaces import Axis, Spaces

Role = Literal["producer", "consumer", "channelwise"]
Axes = tuple[Axis, ...]  # of one tensor
Shape = tuple[int, ...]
Rule = Callable[["Call"], Axes | list[Axes]]  # a list where results differ in their axes

OUTPUT = "the model's output"  # why what the model gives stays as it is
DYNAMIC = 10**9  # sizes from here on stand for dynamic ones; no axis with channels is as long
FIRST_PRIME = 10**15  # of those that stand for symbols: fractions of them are dynamic too


@dataclass(frozen=True)
class Counted:
    """An integer of the graph that counts the positions of `axis`: `argument` of `node`, or its element `item`.

    `value`: what it is as long as no channel is gone.
    """

    node: str
    argument: str
    item: int | None
    value: int
    axis: Axis


class Trace:
    """What is known of a graph once all its nodes were met. `rules`: what an operator does, by its name.

    `spaces`: the channels. `parameters`: the axes of each parameter and buffer that the graph reads. `roles`: what
    (parameter, axis) is to its channels, where it is not just a factor of each. `counted`: integers that change with
    the channels. `normalised`: axes that a LayerNorm runs over.
    """

    def __init__(self, module: GraphModule, rules: Mapping[str, Rule]) -> None:
        self.spaces = Spaces()
        self.parameters: dict[str, Axes] = {}
        self.roles: dict[tuple[str, int], tuple[Role, ...]] = {}
        self.counted: list[Counted] = []
        self.normalised: list[Axis] = []
        self._module, self._rules = module, rules
        self._results: dict[Node, list[Axes]] = {}
        self._tensors: dict[Tensor, Axes] = {}  # by identity, as tensors are compared: ties have the same channels
        self._primes: dict[Any, int] = {}
        for node in module.graph.nodes:
            self._results[node] = self._met(node)

    def axes(self, node: Node) -> Axes:
        """The axes of the tensor that `node` gives; none where it gives something else."""
        return next(iter(self._results[node]), ())

    def shapes(self, node: Node) -> list[Shape]:
        """The shape of each result of `node`. A dynamic size is a large prime, so that products tell sizes apart."""
        if node.op == "call_function" and "val" not in node.meta:
            raise ModelDoesNotRun(f"the graph does not say what {node.name} gives: no channels can be cut, layers can")
        given = node.meta.get("val")
        if not isinstance(given, (list, tuple)):
            given = [given] if isinstance(given, Tensor) else []
        return [tuple(map(self._size, tensor.shape)) if isinstance(tensor, Tensor) else () for tensor in given]

    def opaque(self, node: Node, reason: str) -> list[Axes]:
        """Results whose channels, if they have any, must all stay."""
        return [
            tuple(self.spaces.new(size, reason) if 1 < size < DYNAMIC else () for size in shape)
            for shape in self.shapes(node)
        ]

    def _size(self, size: int | torch.SymInt) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._primes:
                self._primes[symbol] = nextprime(max(self._primes.values(), default=FIRST_PRIME))
        return int(expression.xreplace(self._primes))

    def _met(self, node: Node) -> list[Axes]:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "placeholder":
            return self.opaque(node, "the model's input")
        if node.op == "output":
            for axis in (axis for given in node.all_input_nodes for axis in self.axes(given)):
                self.spaces.freeze(axis, OUTPUT)
            return []
        if node.target is getitem:
            values, item = node.args
            return self._results[values][item : item + 1]  # type: ignore[index, operator]
        if "val" not in node.meta and not node.users:
            return []  # an assertion, which gives nothing and holds for fewer channels as well
        return self._called(Call(self, node))

    def _attribute(self, name: str) -> list[Axes]:
        tensor = attrgetter(name)(self._module)
        if not isinstance(tensor, Tensor):
            return []
        if tensor not in self._tensors:
            self._tensors[tensor] = tuple(self.spaces.new(size) if size else () for size in tensor.shape)
        self.parameters[name] = self._tensors[tensor]
        return [self.parameters[name]]

    def _called(self, call: Call) -> list[Axes]:
        rule = self._rules.get("pointwise" if call.is_pointwise else call.name)
        if rule is None or not call.tensors:
            return call.refuse("is not known")
        try:
            found = rule(call)
        except Refused as refused:
            return call.refuse(str(refused))
        shapes = self.shapes(call.node)
        results = found if isinstance(found, list) else [found] * len(shapes)
        return results if self._fit(results, shapes) else call.refuse("is not known in this form")

    def _fit(self, results: list[Axes], shapes: list[Shape]) -> bool:
        """Whether results have the lengths that the export recorded: an overload may be none that its rule knows."""
        return len(results) == len(shapes) and all(
            len(axes) == len(shape)
            and all(not axis or self.spaces.positions(axis) == size for axis, size in zip(axes, shape, strict=True))
            for axes, shape in zip(results, shapes, strict=True)
        )


class Refused(Exception):
    """A rule cannot follow the channels through this call; the message completes "<operator> ..."."""


class Call:
    """One call of an operator, as its rule sees it.

    `name`: such as `conv2d`, or `relu` for `relu_` too. `tensors`: what goes in. `call["dim"]` is an argument by the
    name that the operator's schema gives it, its default where it was left out, None where there is none.
    """

    def __init__(self, trace: Trace, node: Node) -> None:
        self.trace, self.node, self.spaces = trace, node, trace.spaces
        self.tensors = [given for given in node.all_input_nodes if trace.shapes(given)]
        operator = node.target
        if isinstance(operator, OpOverload) and operator.namespace == "aten":
            self.name = operator._schema.name.removeprefix("aten::").rstrip("_")
            self.is_pointwise = torch.Tag.pointwise in operator.tags  # not of all in-place ones
        else:
            self.name, self.is_pointwise = str(getattr(operator, "__name__", operator)), False
        self._arguments = arguments(node)

    def __getitem__(self, argument: str) -> Any:
        return self._arguments.get(argument)

    @property
    def first(self) -> Axes:
        """The axes of the tensor that the operator works on."""
        return self.trace.axes(self.tensors[0])

    def axes(self, argument: str) -> Axes:
        """The axes of a tensor; none for one that was left out."""
        return self.trace.axes(self[argument]) if isinstance(self[argument], Node) else ()

    @property
    def shape(self) -> Shape:
        """Of the result, the first one where there are several."""
        return self.trace.shapes(self.node)[0]

    def sizes(self, argument: str) -> Shape:
        """The shape of a tensor."""
        return self.trace.shapes(self[argument])[0]

    def dims(self) -> list[int]:
        """The argument `dim` or `dims`, counted from the left; all axes where it is left out."""
        rank = len(self.first)
        given = self["dim"] if self["dim"] is not None else self["dims"]
        dims = [given] if isinstance(given, int) else given or range(rank)
        return [dim % rank for dim in dims]

    def dim(self, rank: int | None = None) -> int:
        """The argument `dim`, counted from the left among `rank` axes, those that `first` has unless given."""
        dim: int = self["dim"] % (rank or len(self.first))
        return dim

    def replaced(self, dim: int, *axes: Axis) -> Axes:
        """The axes `first` with others in place of one."""
        found = list(self.first)
        found[dim : dim + 1 or None] = axes
        return tuple(found)

    def weight(self, argument: str, *, producer: int | None = None, consumer: int | None = None) -> Axes:
        """The axes of a parameter, of which one makes channels and one reads them.

        Raises Refused where the model computes it: zeroing a weight might not zero what is computed of it.
        """
        node = self[argument]
        if node.op != "get_attr":
            raise Refused("computes its weights")
        roles: tuple[tuple[Role, int | None], ...] = (("producer", producer), ("consumer", consumer))
        for role, axis in roles:
            if axis is not None:
                known = self.trace.roles.get((node.target, axis), ())
                self.trace.roles[node.target, axis] = known if role in known else (*known, role)
        return self.trace.axes(node)

    def freeze(self, axis: Axis, why: str) -> None:
        """Keep the channels of `axis` whole; `why` completes "<operator> ..."."""
        self.spaces.freeze(axis, self._reason(why))

    def unify(self, *axes: Axis, why: str = "joins channels that are cut differently") -> Axis:
        """Make axes of equal length the same channels, and return one of them; () where one has none."""
        if () in axes:
            why = "joins the channels with an axis that has none"
        for other in axes[1:]:
            self.spaces.unify(axes[0], other, self._reason(why))
        return () if () in axes or not axes else axes[0]

    def split(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        """The axis before and from `position`."""
        return self.spaces.split(axis, position, self._reason("cuts within a channel"))

    def count(self, axis: Axis, argument: str, item: int | None = None) -> None:
        """Remember that an argument, or its element `item`, counts the positions of `axis`."""
        if axis:
            size = self.spaces.positions(axis)
            self.trace.counted.append(Counted(self.node.name, argument, item, size, axis))

    def refuse(self, why: str) -> list[Axes]:
        """Keep the channels of all inputs whole, and know nothing of the results."""
        for given in self.tensors:
            for axis in self.trace.axes(given):
                self.freeze(axis, why)
        return self.opaque(why)

    def opaque(self, why: str) -> list[Axes]:
        """Results of which nothing is known, so that what meets them must stay whole."""
        return self.trace.opaque(self.node, self._reason(why))

    def _reason(self, why: str) -> str:
        stack = [path for path, _ in (self.node.meta.get("nn_module_stack") or {}).values() if path]
        return inert(f"{stack[-1]}: {self.name} {why}" if stack else f"{self.node.name} {why}")


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults included; none where the operator has no schema."""
    if not isinstance(node.target, OpOverload):
        return {}
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | node.kwargs
