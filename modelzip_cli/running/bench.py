"""A model on the bench: its data, cut into what is learnt from and what is tested on, and what compressed ones do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.distill import choose_rows
from modelzip_cli.running.evaluate import Evaluation, chosen_rows, evaluate, prepared
from modelzip_cli.running.inputs import Batch, Examples, Rows
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.model import Model, gives_features
from modelzip_cli.running.repair import with_weights
from modelzip_cli.running.students import calibration
from modelzip_cli.running.weights import file_names


@dataclass
class Bench:
    """The dense model and its data. `train`, `held`: rows of `examples`; `rows`: of `tested`, on which is judged.

    `batches`: at most 512 examples, none of those that are judged on. `names`: of the model's tensors -> of the
    checkpoint's. `stages`: what was judged so far, in order.
    """

    dense: Model
    examples: Examples
    tested: Examples
    train: Rows
    held: Rows
    rows: Rows
    batches: list[Batch]
    names: Mapping[str, str]
    stages: list[tuple[str, Evaluation]] = field(default_factory=list)

    @property
    def tested_on(self) -> str:
        """What is judged on, for the report."""
        if self.tested is not self.examples:
            return self.tested.label
        return f"{len(self.rows):,} held-out examples of {self.examples.label}"

    def judge(self, label: str, model: Model, *, latency: bool = False) -> Evaluation:
        """Evaluate a model against the dense one; the result is a stage of that name."""
        found = evaluate(model, self.tested, self.rows, reference=self.dense, latency=latency)
        self.stages.append((label, found))
        return found

    def loaded(self, tensors: Mapping[str, Tensor], *, size: int = 0) -> Model:
        """The model with the weights of a checkpoint of `size` bytes."""
        return with_weights(self.dense, tensors, self.names, size)


def open_bench(
    path: Path, network: Network, data: str, test: str | None, options: DataOptions, seed: int, names: Collection[str]
) -> Bench:
    """Open the model at `path`, whose tensors are called `names` there, and its data.

    What is tested on is `test`, or some examples of `data` that nothing else is done with. Raises what opening raises.
    """
    model = open_model(path, network)
    examples = open_data(data, model.wanted, options)
    tested = open_data(test, model.wanted, options) if test is not None else examples
    train, held = choose_rows(examples, None, seed)
    model = prepared(model, examples, train)
    model = replace(model, features=gives_features(model, examples.batch(train[:2])))
    everything = chosen_rows(examples, None)
    batches = calibration(examples, train if test is None else everything, seed, model)
    rows = held if test is None else chosen_rows(tested, None)
    return Bench(model, examples, tested, train, held, rows, batches, file_names(model.module, names))
