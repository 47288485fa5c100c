"""Small honest checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from tests.checkpoints import weights


def honest_weights() -> dict[str, torch.Tensor]:
    """Two matrices, one of them half precision, a bias, a counter and an empty tensor."""
    return OrderedDict(
        {
            "layer.weight": weights(6, 40),
            "layer.bias": weights(6, seed=1),
            "last.weight": weights(3, 10, seed=2).half(),
            "counter": torch.tensor(7),
            "nothing": torch.empty(0, 3),
        }
    )


def honest_safetensors(path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(dict(honest_weights()), path, metadata={"format": "pt"})
    return path


def honest_torch(path: Path) -> Path:
    """A trainer's checkpoint: weights with a tie under `model`, values of all kinds and an optimizer beside them."""
    tensors = honest_weights()
    tensors["tied.weight"] = tensors["layer.weight"]
    values = {
        "epoch": 3,
        "betas": (0.9, 0.999),
        "history": [1.5, float("inf"), None, True],
        "classes": {0: "zero", -1: "other"},
        "shape": torch.Size([3, 4]),
        "dtype": torch.float16,
        "optimizer": {"state": {0: {"exp_avg": weights(4, seed=3)}}},
        "raw": b"\x00\xff",
        "nested": OrderedDict(a={1, 2}, b=1j, c=2**70),
    }
    torch.save({"model": tensors, **values}, path)
    return path


def tiny_torch(path: Path) -> Path:
    """The least that has a tie, a value beside the weights and a kept tensor."""
    matrix = weights(2, 9, seed=4)
    torch.save({"w": matrix, "t": matrix, "b": weights(2, seed=5), "n": (1, 0.5)}, path)
    return path
