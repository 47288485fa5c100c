"""`eval` and `distill` against loops written by hand: time an example, and time a step.

    python benchmarks/running.py [--rounds 9]

Both sides run in this process, in turn, on one thread. Evaluation: the sample image model on its test set, from the
first batch to the last; by hand it is `argmax == y` in `inference_mode`. A step: batch 64, the student of width 0.34,
teacher outputs computed before, AdamW, clipping. Goals: 1.10 and 1.15 times the loop by hand.
"""

from __future__ import annotations

import sys
import time

import common
import numpy as np
import torch
import torch.nn.functional as F
from common import HERE

from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.distill import choose_rows
from modelzip_cli.running.evaluate import evaluate
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.lesson import Asked, choose_lesson
from modelzip_cli.running.students import StudentSpec, make_student
from modelzip_cli.running.training import Trainer

SAMPLES = HERE.parent / "sample_models"
STEPS = 60


def evaluation(rounds: int) -> float:
    """The ratio of `evaluate` over the loop by hand."""
    model = open_model(SAMPLES / "digits_cnn.pt2", Network())
    examples = open_data(str(SAMPLES / "digits_test.npz"), model.wanted, DataOptions())
    rows = np.arange(len(examples), dtype=np.int64)
    with np.load(SAMPLES / "digits_test.npz") as arrays:
        x, y = torch.from_numpy(arrays["x"].astype(np.float32)), torch.from_numpy(arrays["y"].astype(np.int64))

    def by_hand() -> None:
        with torch.inference_mode():
            sum(int((model.module(x[i : i + 256]).argmax(1) == y[i : i + 256]).sum()) for i in range(0, len(x), 256))

    times = common.in_turn({"ours": lambda: evaluate(model, examples, rows, latency=False), "by hand": by_hand}, rounds)
    return common.median(times["ours"]) / common.median(times["by hand"])


def steps(rounds: int) -> float:
    """The ratio of a training step over the loop by hand."""
    teacher = open_model(SAMPLES / "digits_cnn.pt2", Network())
    examples = open_data(str(SAMPLES / "digits_train.npz"), teacher.wanted, DataOptions())
    asked = Asked(StudentSpec(width=0.34), limit=778, steps=STEPS, labels=0.1, temperature=4.0)
    train, held = choose_rows(examples, asked)
    student = make_student(
        teacher,
        asked.spec,
        kind="strong",
        score="l2",
        network=Network(),
        batches=lambda: [examples.batch(train[:64]), examples.batch(train[64:128])],
        seed=0,
    )
    lesson = choose_lesson(asked, teacher, student.model, examples, train)
    trainer = Trainer(teacher, student.model, examples, train, held, lesson, None)
    with np.load(SAMPLES / "digits_train.npz") as arrays:
        x, y = (
            torch.from_numpy(arrays["x"].astype(np.float32)[train]),
            torch.from_numpy(arrays["y"].astype(np.int64)[train]),
        )
    with torch.no_grad():
        wanted = teacher.module(x)
    module = student.model.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    set_training(module, True)

    def by_hand() -> None:
        for step in range(STEPS):
            rows = torch.randperm(len(x))[:64] if step % 10 == 0 else torch.roll(rows, 1)  # noqa: F821
            scores = module(x[rows])
            soft = F.kl_div((scores / 4).log_softmax(1), (wanted[rows] / 4).softmax(1), reduction="batchmean") * 16
            loss = 0.9 * soft + 0.1 * F.cross_entropy(scores, y[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    def ours() -> None:
        for step in range(STEPS):
            trainer.step(step)

    times = common.in_turn({"ours": ours, "by hand": by_hand}, rounds)
    return common.median(times["ours"]) / common.median(times["by hand"])


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = [("eval, an example", evaluation(options.rounds), 1.10), ("distill, a step", steps(options.rounds), 1.15)]
    print(common.versions("modelzip", "torch"))
    common.print_table(
        "against loops written by hand",
        ("what", "times", "goal", ""),
        [(what, f"{ratio:.2f}", f"{goal:.2f}", common.verdict(ratio <= goal)) for what, ratio, goal in found],
    )
    print(f"{time.perf_counter() - started:.0f} s")
    return 0 if all(ratio <= goal for _, ratio, goal in found) else 1


if __name__ == "__main__":
    sys.exit(main())
