"""`prune --channels`: a narrower network without training, cut by the same channel groups as a student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from modelzip_cli.containers.atomic import write_bytes
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.output import check_output
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.evaluate import Evaluation, chosen_rows, evaluate, use_threads
from modelzip_cli.running.inputs import Batch, Examples, Rows, Wanted
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.model import Model
from modelzip_cli.running.perceptron import settled
from modelzip_cli.running.student_file import student_bytes
from modelzip_cli.running.students import StudentSpec, calibration, make_student

EXAMPLES, AXIS = 4, 16  # of an input that is made up: batch, and the length of an axis that may have any


@dataclass(frozen=True)
class Narrowed:
    """What became of a run. `before` and `after` are None without data; `path` is None in a dry run."""

    source: Model
    narrow: Model
    path: Path | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    before: Evaluation | None
    after: Evaluation | None
    data: str | None


def narrow(
    path: Path,
    output: Path,
    share: float,
    network: Network,
    data: str | None,
    options: DataOptions,
    *,
    threads: int,
    force: bool,
    dry_run: bool,
) -> Narrowed:
    """Keep `share` of the channels of each group of the model at `path`, and write it exported at `output`.

    With `data`, running statistics of BatchNorm are estimated again, and the model is evaluated before and after.
    Raises UsageError for an `output` that is no .pt2, for networks with nothing to cut, and for inputs of a shape that
    only data could tell.
    """
    use_threads(threads)
    if output.suffix != ".pt2":
        raise UsageError(f"{inert(str(output))}: a narrower network is another network: name an exported file, .pt2")
    check_output(path, output, force=force, dry_run=dry_run, make_folders=True)
    model = open_model(path, network)
    examples = open_data(data, model.wanted, options) if data is not None else None
    rows = chosen_rows(examples, None) if examples is not None else None
    if examples is not None and rows is not None:
        model = settled(model, examples, rows)
        model.check(examples.batch(rows[:2]))
    batches = _batches(examples, rows, model)
    made = make_student(
        model, StudentSpec(width=share), kind="strong", score="l2", network=network, batches=batches, seed=0
    )
    recipe = {"source": path.name, "channels": share}
    content = student_bytes(made.model, output.suffix, recipe, batches()[0])
    smaller = replace(made.model, bytes=len(content), label=inert(str(output)))
    before = after = None
    if examples is not None and rows is not None:
        before = evaluate(model, examples, rows, reference=model)
        after = evaluate(smaller, examples, rows, reference=model)
    if not dry_run:
        write_bytes(output, content, replace=force)
    warnings = examples.warnings if examples is not None else ()
    return Narrowed(
        model,
        smaller,
        None if dry_run else output,
        made.notes,
        warnings,
        before,
        after,
        examples.label if examples is not None else None,
    )


def _batches(examples: Examples | None, rows: Rows | None, model: Model) -> Callable[[], list[Batch]]:
    if examples is not None and rows is not None:
        return lambda: calibration(examples, rows, 0, model)
    made_up = Batch(example_input(model.wanted, model.label), None)
    return lambda: [made_up]  # one batch: running statistics stay as they are


def example_input(wanted: Wanted, label: str) -> tuple[Tensor, ...]:
    """An input of the right shape, to run a model on when there are no data. Raises UsageError where it is unknown."""
    if wanted.shape is None or wanted.inputs != 1:
        raise UsageError(f"{label}: what the network takes is not known without data: give --data")
    shape = (wanted.batch or EXAMPLES, *(AXIS if size is None else size for size in wanted.shape))
    generator = torch.Generator().manual_seed(0)
    if wanted.kind == "tokens":
        return (torch.randint(0, 2, shape, generator=generator),)
    return (torch.randn(shape, generator=generator, dtype=torch.float32).to(wanted.dtype or torch.float32),)
