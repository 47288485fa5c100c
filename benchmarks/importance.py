"""What the sample models do when a model on data says which weights matter: pruned, and in few bits.

    python benchmarks/importance.py [--task image|text] [--write]

Prunes by every criterion and quantizes with and without error feedback, and measures on the test sets what the models
do as they are, repaired (BatchNorm re-estimated, or biases corrected) and recovered (60 steps of distillation from the
dense model). With `--write` the tables go into docs/quality.md, and the picture beside it. Exits with 1 where a goal is
missed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import importance_picture
from common import HERE

SAMPLES = HERE.parent / "sample_models"
PAGE = HERE.parent / "docs" / "quality.md"
PICTURE = HERE.parent / "docs" / "importance.svg"
SCRIPT = "benchmarks/importance.py"
AS_IS, REPAIRED, RECOVERED = "as is", "repaired", "recovered"
SPARSITIES = ("0.5", "0.7", "0.9")  # of the table
MOST = SPARSITIES[-1]  # where several seeds are taken, and where `auto` chooses
STEPS = 60  # of recovery
CRITERIA: tuple[tuple[str, ...], ...] = (  # --criterion, and more options
    ("magnitude",),
    ("magnitude", "--scope", "layer"),
    ("random",),
    ("taylor",),
    ("fisher",),
    ("wanda",),
    ("sparsegpt",),
    ("auto",),
)
PICTURED = (("magnitude",), ("fisher",))
LEARNT = (*PICTURED, ("auto",))  # which are recovered
SEEDED = (("magnitude",), ("random",), ("auto",))  # which are drawn several times at the largest share
SCHEMES = ("int8", "int6", "int5", "int4", "int3", "int2", "ternary", "nf4", "codebook3")


@dataclass(frozen=True)
class Sample:
    """A model, its data, and the metric that `eval` has of it: accuracy in %, or nats a character.

    `seeds`: where one run is not enough. `drawn`: shares of the picture. `bits`: what `ecq` is asked for. `patterns`:
    N:M, pruned in addition to shares.
    """

    name: str
    model: Path
    network: tuple[str | Path, ...]
    data: Path
    test: Path
    metric: str
    digits: int
    seeds: tuple[int, ...]
    drawn: tuple[str, ...]
    bits: tuple[str, ...]
    patterns: tuple[str, ...] = ()

    def value(self, evaluation: dict[str, Any]) -> float:
        """The metric of an evaluation."""
        return 100 * evaluation["accuracy"] if self.metric == "accuracy %" else evaluation["nats"]

    def shown(self, values: Sequence[float]) -> str:
        """The mean, and how far values of several seeds spread around it."""
        mean = f"{statistics.mean(values):.{self.digits}f}"
        return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{self.digits}f}"


IMAGE = Sample(
    "image",
    SAMPLES / "digits_cnn.pt2",
    (),
    SAMPLES / "digits_train.npz",
    SAMPLES / "digits_test.npz",
    "accuracy %",
    1,
    (0, 1, 2),
    ("0.5", "0.7", "0.8", "0.9", "0.95"),
    ("3", "2.25"),
)
TEXT = Sample(
    "text",
    SAMPLES / "docs_lm.safetensors",
    ("--arch", f"{SAMPLES / 'train.py'}:DocsLM"),
    SAMPLES / "docs_train.npz",
    SAMPLES / "docs_test.npz",
    "nats",
    3,
    (0,),
    SPARSITIES,
    ("3", "2"),
    ("2:4",),
)


@dataclass(frozen=True)
class Stages:
    """What one way of pruning leaves, by stage, a value a seed."""

    values: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def at(self, stage: str) -> float:
        """The mean over the seeds at a stage; as it is, where the repair was undone."""
        return statistics.mean(self.values[AS_IS if stage == REPAIRED and stage not in self.values else stage])


def report(*arguments: str | Path) -> dict[str, Any]:
    """Run the installed program, and return the report that it prints as JSON."""
    command = [common.PROGRAM, *arguments, "--json", "--no-progress", "-j", "1"]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Measured:
    """Runs of a sample, each done once."""

    sample: Sample
    folder: Path
    done: dict[tuple[tuple[str, ...], str], Stages] = field(default_factory=dict)

    def stages(self, command: str, *options: str) -> tuple[dict[str, float], dict[str, Any]]:
        """The metric by stage of a compressed model, and the whole report."""
        sample = self.sample
        found = report(
            *(command, sample.model, *sample.network, "--data", sample.data, "--test-data", sample.test),
            *(*options, "-o", self.folder / "small.safetensors", "-f"),
        )
        return {one["stage"]: sample.value(one) for one in found["evaluation"]["stages"]}, found

    def pruned(self, criterion: tuple[str, ...], amount: str) -> Stages:
        """One way of pruning to a share or a pattern; with several seeds where much depends on them."""
        key = criterion, amount
        if key not in self.done:
            options = ("--pattern" if ":" in amount else "--sparsity", amount, "--criterion", *criterion)
            learns = criterion in LEARNT and ":" not in amount
            options += ("--recover", str(STEPS)) if learns else ()
            seeds = self.sample.seeds if amount == MOST and criterion in SEEDED else self.sample.seeds[:1]
            runs = [self.stages("prune", *options, "--seed", str(seed))[0] for seed in seeds]
            found = {stage: tuple(run[stage] for run in runs if stage in run) for stage in (AS_IS, REPAIRED, RECOVERED)}
            self.done[key] = Stages({stage: values for stage, values in found.items() if values})
            print(self.sample.name, *criterion, amount, self.done[key].values, flush=True)
        return self.done[key]

    def nearest(self, schemes: Sequence[tuple[str, ...]]) -> list[float]:
        """The metric of every scheme without data."""
        sample, paths = self.sample, []
        for number, scheme in enumerate(schemes):
            paths.append(self.folder / f"nearest-{number}.safetensors")
            common.modelzip("quantize", sample.model, "--scheme", *scheme, "-o", paths[-1], "-q", "-f")
        network = sample.network or ("--arch", sample.model)
        found = report("eval", *paths, *network, "--data", sample.test)
        return [sample.value(run["evaluation"]["after"]) for run in found["runs"]]


def possible(criterion: tuple[str, ...], amount: str) -> bool:
    """Whether the table has it: `auto` takes one of the others, and a pattern is the same in every layer."""
    if criterion == ("auto",):
        return amount == MOST
    return ":" not in amount or "--scope" not in criterion


def pruning_table(runs: Measured) -> list[str]:
    """A row a criterion: as is / repaired by share, and recovered."""
    sample = runs.sample
    amounts = (*SPARSITIES, *sample.patterns)
    heads = [amount if ":" in amount else f"{100 * float(amount):g} %" for amount in amounts]
    lines = [("criterion", *heads, f"90 %, {STEPS} steps of recovery"), ("---", *["---:"] * (len(amounts) + 1))]
    for criterion in CRITERIA:
        cells = [" ".join(criterion).replace("--scope layer", "in each layer")]
        for amount in amounts:
            values = runs.pruned(criterion, amount).values if possible(criterion, amount) else {}
            cells.append(" / ".join(sample.shown(values[stage]) for stage in (AS_IS, REPAIRED) if stage in values))
        last = runs.pruned(criterion, MOST).values
        cells.append(f"**{sample.shown(last[RECOVERED])}**" if RECOVERED in last else "")
        lines.append((*cells,))
    return [f"| {' | '.join(line)} |" for line in lines]


@dataclass(frozen=True)
class Quantized:
    """A scheme: stored bits a weight, the metric to nearest, and with error feedback by stage."""

    name: str
    bits: float
    nearest: float
    fed: dict[str, float]

    @property
    def last(self) -> float:
        """What the file that was written does."""
        return self.fed.get(REPAIRED, self.fed[AS_IS])


def quantized(runs: Measured) -> list[Quantized]:
    """Every scheme without and with data."""
    schemes = [(scheme,) for scheme in SCHEMES] + [("ecq", "--bpw", bits) for bits in runs.sample.bits]
    found = []
    for scheme, nearest in zip(schemes, runs.nearest(schemes), strict=True):
        fed, told = runs.stages("quantize", "--scheme", *scheme)
        found.append(Quantized(" ".join(scheme), told["totals"]["bits_per_weight"], nearest, fed))
        print(runs.sample.name, *scheme, nearest, fed, flush=True)
    return found


def quantized_table(rows: Sequence[Quantized], sample: Sample) -> list[str]:
    """A row a scheme."""
    lines = [
        "| scheme | bits a weight | to nearest | error feedback | and repaired |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        values = (row.nearest, row.fed[AS_IS], row.fed.get(REPAIRED))
        cells = ["" if value is None else f"{value:.{sample.digits}f}" for value in values]
        lines.append(f"| `{row.name}` | {row.bits:.2f} | {' | '.join(cells)} |")
    return lines


def goals(runs: Measured, rows: Sequence[Quantized]) -> list[tuple[str, str, bool]]:
    """What is to be reached on a sample: the goal, what was measured, and whether it is."""
    by_name = {row.name: row.last for row in rows}
    magnitude = runs.pruned(("magnitude",), MOST)
    if runs.sample.metric == "accuracy %":
        lost = 93.5 - max(by_name["int2"], by_name["ternary"])
        return [
            ("90 % pruned by magnitude, repaired: 83 %", f"{magnitude.at(REPAIRED):.1f}", magnitude.at(REPAIRED) >= 83),
            (f"and after {STEPS} steps: 91 %", f"{magnitude.at(RECOVERED):.1f}", magnitude.at(RECOVERED) >= 91),
            ("int2 or ternary within 5 points of 93.5", f"{lost:.1f}", lost <= 5),
        ]
    better = magnitude.at(REPAIRED) - runs.pruned(("fisher",), MOST).at(REPAIRED)
    lost = by_name["int3"] - 1.434
    return [
        ("90 %: fisher 0.3 nats better than magnitude", f"{better:.3f}", better >= 0.3),
        ("int3 within 0.02 nats of 1.434", f"{lost:.3f}", lost <= 0.02),
    ]


def curves(runs: Measured) -> importance_picture.Panel:
    """The part of the picture that shows a sample."""
    sample = runs.sample
    found = {
        (criterion[0], stage): [runs.pruned(criterion, share).at(stage) for share in sample.drawn]
        for criterion in PICTURED
        for stage in (AS_IS, REPAIRED, RECOVERED)
    }
    dense = sample.value(report("eval", sample.model, *sample.network, "--data", sample.test)["evaluation"]["after"])
    return importance_picture.Panel(
        f"{sample.model.name}: {sample.metric}", dense, [float(share) for share in sample.drawn], found
    )


def main() -> int:
    """Measure, print, judge."""
    parser = common.parser(__doc__)
    parser.add_argument("--task", choices=["image", "text"], action="append", help="both, if none is named")
    parser.add_argument("--write", action="store_true", help="into docs/quality.md")
    options = parser.parse_args()
    print(common.versions("modelzip", "torch"))
    reached, panels = True, []
    for sample in (IMAGE, TEXT):
        if options.task and sample.name not in options.task:
            continue
        with common.scratch(options.tmp) as folder:
            runs = Measured(sample, folder)
            pruning, rows = pruning_table(runs), quantized(runs)
            panels.append(curves(runs))
            checked = goals(runs, rows)
        few_bits = quantized_table(rows, sample)
        print(*pruning, "", *few_bits, sep="\n")
        common.print_table(
            f"{sample.name}: goals",
            ("goal", "measured", ""),
            [(what, value, common.verdict(met)) for what, value, met in checked],
        )
        reached &= all(met for _, _, met in checked)
        if options.write:
            for name, lines in ((f"pruned {sample.name}", pruning), (f"few bits {sample.name}", few_bits)):
                PAGE.write_text(common.fill(PAGE.read_text(), name, SCRIPT, "\n".join(lines)))
    if options.write and len(panels) == 2:
        PICTURE.write_text(importance_picture.picture(panels))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
