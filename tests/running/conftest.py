"""What models of other libraries need to load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks here are too small for more, and the tests already run on every core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
    """The library of published architectures; the tests that want it are skipped where it is not there.

    It imports torchvision. Where that was built for another torch, its compiled operators are missing, and it fails as
    it registers what two of them do to shapes. No architecture uses them, so it is enough that they are declared.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")  # they are there for as long as this object is
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pytest.skip("timm does not import without torchvision")
    yield pytest.importorskip("timm")
