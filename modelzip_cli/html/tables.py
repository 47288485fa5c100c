"""Tables about the tensors of one report."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip_cli.errors import inert
from modelzip_cli.figures import decibel, shape, size
from modelzip_cli.html.charts import groups_by_size
from modelzip_cli.html.markup import LONGEST, plural, safe, safe_json, safe_name, sortable_head, table
from modelzip_cli.report import Gate, TensorRow

MOST_WORST = 12
MOST_NAMES = 6
FULL = (
    ("Tensor", "name"),
    ("Status", "word"),
    ("Scheme", "word"),
    ("Shape", "word"),
    ("Type", "word"),
    ("Before", "bytes"),
    ("After", "bytes"),
    ("Bits a weight", "two"),
    ("SQNR, dB", "two"),
    ("Max error", "three"),
    ("Reason", "word"),
)


def worst_tensors(rows: Sequence[TensorRow]) -> str:
    """The tensors with the lowest SQNR."""
    lines = [
        (
            f"<code>{safe_name(row.name)}</code>",
            decibel(row.sqnr_db),
            "-" if row.max_abs_error is None else f"{row.max_abs_error:.3g}",
            safe(row.scheme or "-"),
            shape(row.shape),
        )
        for row in sorted(rows, key=lambda row: row.sqnr_db or 0.0)[:MOST_WORST]
    ]
    columns = (("Tensor", "name"), ("SQNR, dB", "n"), ("Max error", "n"), ("Scheme", ""), ("Shape", ""))
    return table(columns, lines, "Worst tensors") if lines else ""


def left_alone(rows: Sequence[TensorRow]) -> str:
    """What was kept or dropped, by reason."""
    by_reason: dict[tuple[str, str], list[TensorRow]] = {}
    for row in rows:
        if row.status != "compressed":
            by_reason.setdefault((row.status, row.reason or "-"), []).append(row)
    lines = []
    for (status, reason), members in sorted(
        by_reason.items(), key=lambda item: (item[0][0] != "dropped", -sum(row.bytes_before for row in item[1]))
    ):
        labels = [f"<code>{safe_name(item.label)}</code>" for item in groups_by_size(members, [()] * len(members))]
        if len(labels) > MOST_NAMES:
            labels = [*labels[:MOST_NAMES], f"{len(labels) - MOST_NAMES} more groups"]
        total = size(sum(row.bytes_before for row in members))
        lines.append((safe(status), safe(reason), f"{len(members):,}", total, ", ".join(labels)))
    columns = (("What", ""), ("Reason", "reason"), ("Tensors", "n"), ("Bytes", "n"), ("Which", "names"))
    return table(columns, lines, "Kept and dropped tensors") if lines else ""


def gates_and_warnings(gates: Sequence[Gate], warnings: Sequence[str]) -> str:
    """Whether each gate is met, then the warnings."""
    lines = []
    for gate in gates:
        figures = [
            f"{value:,.0f}" if gate.metric == "size" else f"{value:.6g}" for value in (gate.limit, gate.value or 0)
        ]
        reached = "nothing lost" if gate.value is None else figures[1]
        result = '<span class="good">passed</span>' if gate.passed else '<span class="bad">not met</span>'
        lines.append((safe(gate.metric), figures[0], reached, result))
    columns = (("Gate", ""), ("Limit", "n"), ("Reached", "n"), ("Result", ""))
    shown = table(columns, lines, "Gates") if lines else ""
    items = "".join(f"<li>{safe(warning)}</li>\n" for warning in warnings)
    return shown + (f'<ul class="warnings">\n{items}</ul>\n' if items else "")


def full_table(rows: Sequence[TensorRow]) -> str:
    """Every tensor. The rows are JSON, a third of the bytes of HTML; words stand in a list, once each."""
    if not rows:
        return ""
    words: dict[str, int] = {}

    def word(text: str | None) -> int | None:
        return None if text is None else words.setdefault(inert(text, longest=LONGEST), len(words))

    lines = [
        [
            inert(row.name, longest=LONGEST),
            word(row.status),
            word(row.scheme),
            word(shape(row.shape)),
            word(row.dtype),
            row.bytes_before,
            row.bytes_after,
            row.bits_per_weight,
            row.sqnr_db,
            row.max_abs_error,
            word(row.reason),
        ]
        for row in rows
    ]
    head = sortable_head(FULL)
    return (
        f'<div class="sheet">\n<div class="tools" hidden><label>Filter <input type="search" autocomplete="off" '
        f'spellcheck="false" placeholder="words of a name, scheme, reason"></label><output></output></div>\n'
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="All tensors" hidden><table><thead><tr>{head}'
        f'</tr></thead><tbody></tbody></table></div>\n<button type="button" class="more" hidden></button>\n'
        f'<noscript><p class="note">This table of {plural(len(rows), "tensor")} needs JavaScript; the groups above '
        f"cover all of them.</p></noscript>\n"
        f'<script type="application/json">{safe_json({"words": [*words], "rows": lines})}</script>\n</div>\n'
    )
