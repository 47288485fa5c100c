"""Runs modelzip where torchvision was built for another torch, which keeps transformers from importing its models.

    python benchmarks/torchvision_operators.py eval DIRECTORY --data data.npz

Such a torchvision lacks its compiled operators, and fails as it registers what two of them do to shapes. No model of
text uses them, so it is enough that they are declared. Elsewhere this is `modelzip`, only slower to start.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare() -> torch.library.Library | None:
    """Declare the two operators where they are missing; they are there for as long as what is returned is."""
    if not find_spec("torchvision"):
        return None
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(name + SCHEMA)
    return operators


if __name__ == "__main__":
    declared = declare()
    from modelzip_cli.cli.app import main

    main()
