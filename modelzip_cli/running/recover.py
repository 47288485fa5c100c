"""`--recover`: a pruned model learns the outputs of the dense one, and what was pruned stays zero.

Source: Han, Pool, Tran and Dally, Learning both weights and connections, NeurIPS 2015, section 3 (prune, then train the
rest); Hinton, Vinyals and Dean, 2015, arXiv:1503.02531 (the dense model as teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from modelzip_cli.running.inputs import Examples, Rows
from modelzip_cli.running.lesson import BATCH, SEQUENCES, SMALL_PARAMETERS, Lesson
from modelzip_cli.running.model import Model
from modelzip_cli.running.training import State, Trainer

LEARNING_RATE, LEARNING_RATE_SEQUENCES = 2e-3, 1e-3
TEMPERATURE, TEMPERATURE_SEQUENCES = 4.0, 1.0


class SparseTrainer(Trainer):
    """Trains a student of whose weights some stay 0. `kept`: by name of the parameter, which do not."""

    kept: Mapping[str, Tensor]

    def step(self, step: int) -> float:
        """A step, after which what was pruned is 0 again."""
        loss = super().step(step)
        parameters = dict(self.student.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, kept in self.kept.items():
                parameters[name].mul_(kept)
        return loss


def recover(
    model: Model,
    dense: Model,
    kept: Mapping[str, Tensor],
    examples: Examples,
    train: Rows,
    held: Rows,
    steps: int,
    seed: int,
    advance: Callable[[State, Lesson], None],
) -> State:
    """Train `model` in place for `steps` on the outputs of `dense`; the best weights on `held` are those that stay."""
    sequences = examples.a_label_a_position
    batch = dense.wanted.batch or min(SEQUENCES if sequences else BATCH, len(train))
    rate = LEARNING_RATE_SEQUENCES if sequences else LEARNING_RATE
    rate *= min(1.0, (SMALL_PARAMETERS / max(1, dense.parameters)) ** 0.5)
    lesson = Lesson("soft", TEMPERATURE_SEQUENCES if sequences else TEMPERATURE, 0.0, rate, batch, steps, seed)
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    trainer = SparseTrainer(dense, model, examples, train, held, lesson, None)
    trainer.kept = kept
    return trainer.run(lambda state: None, lambda: False, lambda state: advance(state, lesson))
