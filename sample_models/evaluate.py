"""What a checkpoint of a sample model scores on its held-out data, compressed or not.

    python sample_models/evaluate.py FILE [FILE ...] [--json]

Which of the four models a file holds is told from the names and shapes of its tensors.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from train import DigitsCNN, DigitsMLP, DocsLM, DocstringClassifier, accuracy, nats_per_character

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """`value` is in the unit that `metric` names: "accuracy (%)" or "nats per character"."""

    model: str
    metric: str
    value: float


@dataclass(frozen=True)
class Sample:
    """A sample model: how to build it, its test file, and what is measured."""

    model: str
    build: Callable[[], nn.Module]
    test: str
    metric: str
    measure: Callable[[nn.Module, Tensor, Tensor], float]


SAMPLES = (
    Sample("digits_cnn", DigitsCNN, "digits_test.npz", "accuracy (%)", accuracy),
    Sample("digits_mlp", DigitsMLP, "digits_mlp_test.npz", "accuracy (%)", accuracy),
    Sample("docs_lm", DocsLM, "docs_test.npz", "nats per character", nats_per_character),
    Sample("docstring_classifier", DocstringClassifier, "docstrings_test.npz", "accuracy (%)", accuracy),
)


def evaluate_state_dict(state_dict: Mapping[str, Tensor]) -> Result:
    """Recognise the model, load the tensors as float32, tie the head where it is missing, and measure.

    Raises ValueError if the names and shapes are those of no sample model.
    """
    tensors = dict(state_dict)
    if "tok.weight" in tensors:
        tensors.setdefault("head.weight", tensors["tok.weight"])
    for sample in SAMPLES:
        model = sample.build()
        if shapes(model.state_dict()) == shapes(tensors):
            model.load_state_dict(tensors)  # copies into float32
            with np.load(HERE / sample.test) as test:
                x, y = torch.from_numpy(widen(test["x"])), torch.from_numpy(widen(test["y"]))
            return Result(sample.model, sample.metric, sample.measure(model, x, y))
    raise ValueError(f"these tensors are of no sample model: {', '.join(sorted(tensors))}")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Name -> shape."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def widen(array: NDArray[Any]) -> NDArray[Any]:
    """Pictures to float32, tokens and labels to int64: the files hold them in the smallest type that fits."""
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def main() -> None:
    """Print a line for each file, or a JSON list."""
    from modelzip_cli import load_file

    parser = argparse.ArgumentParser(description="Evaluate checkpoints of the sample models on their test data.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="a list of objects: file, model, metric, value")
    options = parser.parse_args()
    results = {file: evaluate_state_dict(load_file(file)) for file in options.files}
    if options.json:
        print(json.dumps([{"file": file, **asdict(result)} for file, result in results.items()], indent=2))
        return
    for file, result in results.items():
        print(f"{file}: {result.model}, {result.value:.4f} {result.metric}")


if __name__ == "__main__":
    main()
