"""Two checkpoints side by side, and a file against its checksums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, shape
from modelzip_cli.grouping import group
from modelzip_cli.render import Block, Heading, Pairs, Table

if TYPE_CHECKING:
    from modelzip_cli.diff import Difference
    from modelzip_cli.verify import Verification

NAME_WIDTH = 200


def difference_blocks(paths: tuple[str, str], found: Difference, *, verbose: bool = False) -> list[Block]:
    """Two checkpoints side by side; tensors that are equal are counted, not listed."""
    blocks: list[Block] = [Heading(f"{paths[0]} <> {paths[1]}")]
    rows = [row for row in found.rows if verbose or row.status != "equal"]
    if rows:
        keys = [(row.shape, row.dtypes, row.status) for row in rows]
        groups = group([row.name for row in rows], keys)
        lines = []
        for item in groups:
            members = [rows[place] for place in item.members]
            first = members[0]
            worst = min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None)
            largest = max((row.max_abs_error for row in members if row.max_abs_error is not None), default=None)
            dtypes = first.dtypes[0] if first.dtypes[0] == first.dtypes[1] else " / ".join(first.dtypes)
            changed = sum(row.changed or 0 for row in members)
            lines.append(
                (
                    inert(item.label, longest=NAME_WIDTH),
                    str(len(members)),
                    shape(first.shape),
                    dtypes,
                    decibel(worst),
                    "-" if largest is None else f"{largest:.3g}",
                    f"{changed:,} elements differ" if changed else first.status,
                )
            )
        blocks.append(Table(("tensors", "n", "shape", "dtype", "dB", "max error", "status"), "lrllrrl", tuple(lines)))
    pairs = [("common", f"{len(found.rows)} tensors, {found.totals['equal']} of them equal bit for bit")]
    if found.totals["sqnr_db"] is not None:
        pairs.append(("error", f"SQNR {found.totals['sqnr_db']:.2f} dB, cosine {found.totals['cosine']:.6f}"))
    for path, names in zip(paths, found.only_in, strict=True):
        if names:
            shown = ", ".join(inert(name, longest=80) for name in names[:6]) + (", ..." if len(names) > 6 else "")
            pairs.append(("only in", f"{path}: {len(names)} tensors: {shown}"))
    return [*blocks, Pairs(tuple(pairs))]


def verification_blocks(found: Verification) -> list[Block]:
    """The result of verify."""
    pairs = [(inert(name, longest=NAME_WIDTH), problem) for name, problem in found.bad]
    what = "every checksum matches" if found.compressed else "readable; no checksums of modelzip inside"
    if found.against and not found.bad:
        what += f"; {found.against} and its recipe give the same bytes"
    verdict = f"{len(found.bad)} problems" if found.bad else f"ok: {what}"
    return [Heading(f"{found.path}  {found.checked} tensors  {verdict}"), *([Pairs(tuple(pairs))] if pairs else [])]
