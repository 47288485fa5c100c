"""Small models as published ones are built, their exports, made once, and libraries of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from train import DocsLM, ResidualBlock

from modelzip_cli.running.export import Exported, load_export
from tests.exports import exported


@pytest.fixture(autouse=True)
def _the_same_random_numbers_in_every_test() -> None:
    torch.manual_seed(0)


def used(module: nn.Module) -> nn.Module:
    """The module in training mode, its running statistics not those of the first day."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.num_batches_tracked.fill_(7)
    return module.train()


@pytest.fixture(scope="session")
def cnn() -> Callable[[], nn.Module]:
    """Makes the same residual block with batch norm each time, [batch, 1, 12, 12] -> [batch, 3, 12, 12]."""

    def make() -> nn.Module:
        torch.manual_seed(1)
        return used(ResidualBlock(1, 3, stride=1))

    return make


@pytest.fixture(scope="session")
def lm() -> Callable[[], nn.Module]:
    """Makes the same character transformer with tied embeddings each time, inputs int64 [batch, time <= 64]."""

    def make() -> nn.Module:
        torch.manual_seed(1)
        return DocsLM(16, layers=1, heads=2).train()

    return make


@pytest.fixture(scope="session")
def cnn_file(cnn, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "cnn.pt2"
    path.write_bytes(exported(cnn().eval(), torch.rand(2, 1, 12, 12)))
    return path


@pytest.fixture(scope="session")
def lm_file(lm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "lm.pt2"
    axes = {0: Dim("batch"), 1: Dim("time", max=64)}
    path.write_bytes(exported(lm().eval(), torch.randint(90, (2, 8)), axes=axes))
    return path


@pytest.fixture
def loaded(tmp_path) -> Callable[[bytes], Exported]:
    """Load the bytes of a `.pt2` file."""

    def load(archive: bytes) -> Exported:
        (tmp_path / "loaded.pt2").write_bytes(archive)
        return load_export(tmp_path / "loaded.pt2")

    return load


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks here are too small for more, and the tests already run on every core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision() -> Iterator[bool]:
    """Whether torchvision is there; libraries of models import it.

    Where it was built for another torch, its compiled operators are missing, and it fails as it registers what two of
    them do to shapes. No architecture uses them, so it is enough that they are declared.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")  # they are there for as long as this object is
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        yield False
        return
    yield True


@pytest.fixture(scope="session")
def timm(torchvision) -> Any:
    """The library of published architectures; the tests that want it are skipped where it is not there."""
    if not torchvision:
        pytest.skip("timm does not import without torchvision")
    return pytest.importorskip("timm")
