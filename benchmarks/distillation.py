"""What students of the sample models do: means over three seeds, and the picture of them.

    python benchmarks/distillation.py [--task image|text] [--seeds 3] [--write]

Runs `modelzip distill` on the image model with a tenth of its data and on the language model with all of it, every way
of learning at the same number of steps, and measures on the test sets. With `--write` the table goes into
docs/quality.md and the picture beside it. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import learning_picture
from common import HERE

SAMPLES = HERE.parent / "sample_models"
PAGE = HERE.parent / "docs" / "quality.md"
SCRIPT = "benchmarks/distillation.py"
IMAGE = (SAMPLES / "digits_cnn.pt2", "--data", SAMPLES / "digits_train.npz", "--test-data", SAMPLES / "digits_test.npz")
TEXT = (
    *(SAMPLES / "docs_lm_trainer.pth", "--arch", f"{SAMPLES / 'train.py'}:DocsLM"),
    *("--data", SAMPLES / "docs_train.npz", "--test-data", SAMPLES / "docs_test.npz"),
)
TENTH = ("--limit", "778", "--max-steps", "300")
EIGHTH = ("--student", "width=0.34")
RUNS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "image": (
        ("labels only, all data", (*EIGHTH, "--kind", "weak", "--labels", "1", "--max-steps", "300")),
        ("weak, all data", (*EIGHTH, "--kind", "weak", "--max-steps", "300")),
        ("labels only", (*EIGHTH, *TENTH, "--kind", "weak", "--labels", "1")),
        ("weak", (*EIGHTH, *TENTH, "--kind", "weak")),
        ("weak, no labels", (*EIGHTH, *TENTH, "--kind", "weak", "--labels", "0")),
        ("strong, labels only", (*EIGHTH, *TENTH, "--labels", "1")),
        ("strong", (*EIGHTH, *TENTH)),
        ("strong, T 1", (*EIGHTH, *TENTH, "--temperature", "1")),
        ("strong, taylor", (*EIGHTH, *TENTH, "--score", "taylor")),
        ("strong, features", (*EIGHTH, *TENTH, "--loss", "features")),
        ("strong, jacobian", (*EIGHTH, *TENTH, "--loss", "jacobian")),
    ),
    "text": (
        ("weak, 3 of 4 layers", ("--student", "depth=0.75", "--kind", "weak", "--max-steps", "80")),
        ("strong, 3 of 4 layers", ("--student", "depth=0.75", "--max-steps", "80")),
        ("strong, 2 of 4 layers", ("--student", "depth=0.5", "--max-steps", "80")),
        ("strong, width 0.5", ("--student", "width=0.5", "--max-steps", "80")),
    ),
}


@dataclass(frozen=True)
class Result:
    """One way of learning: the metric (accuracy in %, or nats) of the teacher, and of students before and after."""

    task: str
    name: str
    teacher: float
    parameters: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    agreement: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.after)


def distil(task: str, options: Sequence[str], seed: int, output: Path) -> dict:
    """The report of one run."""
    source = IMAGE if task == "image" else TEXT
    command = [common.PROGRAM, "distill", *source, *options, "--seed", str(seed), "-o", output, "-f", "-j", "1"]
    done = subprocess.run([*map(str, command), "--json", "--no-progress"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["evaluation"]


def measure(task: str, name: str, options: Sequence[str], seeds: int, folder: Path) -> Result:
    """One row."""
    found = [distil(task, options, seed, folder / "student.pt2") for seed in range(seeds)]

    def metric(one: dict) -> float:
        return 100 * one["accuracy"] if task == "image" else one["nats"]

    return Result(
        task,
        name,
        metric(found[0]["teacher"]),
        found[0]["after"]["parameters"],
        tuple(metric(one["before"]) for one in found),
        tuple(metric(one["after"]) for one in found),
        tuple(100 * one["after"]["agreement"] for one in found),
    )


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table."""
    digits = 1 if result.task == "image" else 3
    spread = statistics.stdev(result.after) if len(result.after) > 1 else 0.0
    return (
        result.name,
        f"{result.parameters:,}",
        f"{statistics.mean(result.before):.{digits}f}",
        f"**{result.mean:.{digits}f}** ± {spread:.{digits}f}",
        f"{result.mean - result.teacher:+.{digits}f}",
        f"{statistics.mean(result.agreement):.1f}",
    )


def table(results: Sequence[Result]) -> list[str]:
    """The Markdown lines of a task."""
    task, rows = results[0].task, results
    metric = "accuracy %" if task == "image" else "nats a character"
    teacher = f"{rows[0].teacher:.{1 if task == 'image' else 3}f}"
    head = ("student", "parameters", f"{metric}, before", "after", f"against the teacher's {teacher}", "agreement %")
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    return [*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]


def goals(results: Sequence[Result], task: str) -> list[tuple[str, str, bool]]:
    """What the students of a task have to reach: the goal, what was measured, and whether it is."""
    by_name = {result.name: result for result in results}
    if task == "image":
        strong, labels = by_name["strong"], by_name["labels only"]
        behind, above = strong.teacher - strong.mean, strong.mean - labels.mean
        return [
            ("strong within 6 points of the teacher", f"{behind:.1f}", behind <= 6),
            ("strong 15 points above labels only", f"{above:.1f}", above >= 15),
        ]
    deep, fresh = by_name["strong, 3 of 4 layers"], by_name["weak, 3 of 4 layers"]
    behind, away = deep.mean - deep.teacher, fresh.mean - fresh.teacher
    return [
        ("3 of 4 layers within 0.05 nats", f"{behind:.3f}", behind <= 0.05),
        ("fresh more than 1 nat away", f"{away:.2f}", away > 1),
    ]


def write(results: Sequence[Result], task: str) -> None:
    """Put the table into the page, and the picture of the image model beside it."""
    page = common.fill(PAGE.read_text(), f"distilled {task}", SCRIPT, "\n".join(table(results)))
    PAGE.write_text(page)
    if task == "image":
        bars = [(result.name, result.mean, statistics.mean(result.before)) for result in results]
        picture = learning_picture.picture(bars, results[0].teacher)
        (PAGE.parent / "quality" / "distilled.svg").write_text(picture)


def main() -> int:
    """Measure, print, judge."""
    parser = common.parser(__doc__)
    parser.add_argument("--task", choices=["image", "text"], action="append", help="both, if none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/quality.md")
    options = parser.parse_args()
    reached = True
    print(common.versions("modelzip", "torch"))
    for task in options.task or ("image", "text"):
        results = []
        with common.scratch(options.tmp) as folder:
            for name, arguments in RUNS[task]:
                results.append(measure(task, name, arguments, options.seeds, folder))
                print(*cells(results[-1]), sep="  ", flush=True)
        checked = goals(results, task)
        rows = [(what, value, common.verdict(met)) for what, value, met in checked]
        common.print_table(f"{task}: goals", ("goal", "measured", ""), rows)
        reached &= all(met for _, _, met in checked)
        if options.write:
            write(results, task)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
