"""What a checkpoint is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import count, shape, size
from modelzip_cli.grouping import Group, Node, group, most_of, tree
from modelzip_cli.render import Block, Heading, Pairs, Table, bar

if TYPE_CHECKING:
    from modelzip_cli.inspection import Inspection

NAME_WIDTH = 200


def inspection_blocks(found: Inspection, *, verbose: bool = False) -> list[Block]:
    """A checkpoint from its header."""
    weights = [tensor for tensor in found.tensors if tensor.weights]
    by_dtype = found.dtypes()
    total = sum(entry["bytes"] for entry in by_dtype.values())
    shares = ", ".join(f"{name} {entry['bytes'] / total:.0%}" for name, entry in by_dtype.items()) if total else "empty"
    kind = f"{found.container}, compressed by modelzip" if found.compressed else found.container
    title = f"{found.path}  {kind}, {size(found.bytes)}, {count(found.parameters)} weights in {len(weights)} tensors"
    blocks: list[Block] = [Heading(title)]
    sizes = [0 if tensor.tied_to else tensor.stored_bytes for tensor in weights]
    if verbose:
        rows = [
            (inert(t.name), "1", shape(t.shape), _type(t.dtype, t.scheme), size(t.stored_bytes), t.tied_to or "")
            for t in weights
        ]
        blocks.append(Table(("name", "n", "shape", "type", "bytes", "tied to"), "lrllrl", tuple(rows)))
    else:
        keys = [(tensor.shape, tensor.dtype, tensor.scheme, tensor.tied_to) for tensor in weights]
        groups = group([tensor.name for tensor in weights], keys)
        groups.sort(key=lambda item: -sum(sizes[place] for place in item.members))
        shown, rest = most_of(groups, sizes)
        stored = sum(sizes)
        lines: list[tuple[str, ...]] = []

        def cells(item: Group | None) -> tuple[str, str]:
            if item is None:
                return "", ""
            tensor = weights[item.members[0]]
            what = f"tied to {inert(tensor.tied_to)}" if tensor.tied_to else _type(tensor.dtype, tensor.scheme)
            return shape(tensor.shape), what

        _draw(tree(shown, sizes), "", "", stored, cells, lines.append)
        if rest:
            below = sum(sizes[place] for item in rest for place in item.members)
            names = sum(len(item.members) for item in rest)
            lines.append(
                (f"({len(rest)} smaller groups)", str(names), "", "", size(below), bar(below / max(stored, 1), 10))
            )
        blocks.append(Table(("name", "n", "shape", "type", "bytes", "share"), "lrllrl", tuple(lines)))
    blocks.append(Pairs(tuple(_inspection_pairs(found, shares)), (("warning", "warn"),) if found.warnings else ()))
    if found.statistics is not None:
        from modelzip_cli.pages.statistics import statistics_blocks

        blocks += statistics_blocks(found, verbose=verbose)
    return blocks


def _type(dtype: str, scheme: str | None) -> str:
    return f"{scheme} of {dtype}" if scheme else dtype


def _draw(
    nodes: Sequence[Node],
    indent: str,
    branch: str,
    total: int,
    cells: Callable[[Group | None], tuple[str, str]],
    put: Callable[[tuple[str, ...]], None],
) -> None:
    """Put the lines of a tree of names: name, n, shape, type, bytes, share."""
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        lead = "" if not branch else indent + ("└─ " if last else "├─ ")
        share = bar(node.size / total, 10) if total else ""
        name = inert(node.name, longest=NAME_WIDTH)
        put((lead + name, str(node.count), *cells(node.group), size(node.size), share))
        deeper = "" if not branch else indent + ("   " if last else "│  ")
        _draw(node.children, deeper, "x", total, cells, put)


def _inspection_pairs(found: Inspection, shares: str) -> list[tuple[str, str]]:
    pairs = [("dtypes", shares)]
    if found.state_dict:
        pairs.append(("state dict", f"under {inert(found.state_dict)!r}"))
    beside = [tensor for tensor in found.tensors if not tensor.weights]
    if beside:
        total = sum(tensor.bytes for tensor in beside)
        top = ", ".join(sorted({inert(tensor.name.split(".")[0], longest=60) for tensor in beside}))
        pairs.append(("beside", f"{len(beside)} tensors, {size(total)} ({total / found.bytes:.0%} of the file): {top}"))
    extras = [f"{inert(name, longest=60)} = {inert(value, longest=60)}" for name, value in found.extras.items()]
    if extras:
        pairs.append(("values", "; ".join(extras[:8]) + (f"; {len(extras) - 8} more" if len(extras) > 8 else "")))
    if found.metadata:
        shown = ", ".join(f"{inert(k, longest=40)}={inert(v, longest=40)}" for k, v in [*found.metadata.items()][:6])
        pairs.append(("metadata", shown))
    if found.manifest:
        source = found.manifest["source"]
        made = f"{inert(str(source['name']))} ({size(source['bytes'])})"
        pairs.append(("made from", f"{made} by modelzip {inert(str(found.manifest['modelzip']))}"))
        pairs.append(("next", f"modelzip verify {shlex.quote(found.path)}"))
    elif found.statistics is None:
        pairs.append(("next", f"modelzip quantize {shlex.quote(found.path)}"))
    return [*pairs, *(("warning", warning) for warning in found.warnings)]
