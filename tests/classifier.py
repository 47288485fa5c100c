"""The network of `tests/net.py`, its weights in several files, and data that it is right about to a known degree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file
from tests.exports import exported
from tests.net import FEATURES, Net

EXAMPLES, WRONG = 60, 6


@dataclass(frozen=True)
class Classifier:
    """Paths, and `arch` for the weights that come without a network; the accuracy on `data` is 0.9."""

    folder: Path
    arch: str

    def path(self, name: str) -> Path:
        """A file: net.safetensors, nested.pth, net.pt2, net.int8.safetensors (made from net.pt2), data.npz."""
        return self.folder / name


def make_classifier(folder: Path) -> Classifier:
    """Write the files: the labels are the network's own answers, but for six."""
    torch.manual_seed(3)
    net = Net().eval()
    x = torch.randn(EXAMPLES, FEATURES)
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.head.bias -= net(x).median(dim=0).values  # so that all three classes come up
        y = net(x).argmax(dim=1)
    y[:WRONG] = (y[:WRONG] + 1) % 3
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    save_file(net.state_dict(), folder / "net.safetensors")
    torch.save({"teacher": net.state_dict(), "student": Net().state_dict()}, folder / "nested.pth")
    (folder / "net.pt2").write_bytes(exported(net, x[:2]))
    compress_file(
        folder / "net.pt2", folder / "net.int8.safetensors", Recipe(scheme="int8"), Settings(1), command="quantize"
    )
    return Classifier(folder, f"{Path(__file__).with_name('net.py')}:Net")
