"""Make a checkpoint to measure with: bf16 weights of N(0, 0.02) in the shapes of a small Llama.

    python benchmarks/checkpoints.py OUT.safetensors --weights 500000000
    python benchmarks/checkpoints.py OUT.pth --tensors 300
    python benchmarks/checkpoints.py OUT.legacy.pth --weights 500000000
    python benchmarks/checkpoints.py OUT --weights 500000000

Without a suffix it is a Hugging Face directory in four shards. A .pth needs memory for the whole model, since
torch.save does; a .safetensors does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import prod, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]
WIDEST = 2048  # of TinyLlama; its layers have 51 M weights
WEIGHTS_PER_WIDTH = 12.25  # weights of a layer over its width squared: four square matrices, three 2.75 times as large


def llama_shapes(weights: int) -> Shapes:
    """Five layers of the width that fits, up to `WIDEST`; then more layers."""
    width = min(WIDEST, max(128, 128 * round(sqrt(weights / 5 / WEIGHTS_PER_WIDTH) / 128)))
    hidden = width * 11 // 4
    shapes: Shapes = {}
    for layer in range(max(1, round(weights / (WEIGHTS_PER_WIDTH * width * width)))):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (width, hidden), f"{name}.input_layernorm.weight": (width,)}
    return shapes


def many_shapes(tensors: int) -> Shapes:
    """Matrices of 64 x 64."""
    return {f"model.layers.{i // 10}.part_{i % 10}.weight": (64, 64) for i in range(tensors)}


def contents(shapes: Shapes) -> Iterator[NDArray[np.uint16]]:
    """The bf16 bits of each tensor in turn, flat. They are cut from one pool of random numbers, at random places."""
    random = np.random.default_rng(0)
    longest = max(map(prod, shapes.values()))
    values = random.standard_normal(longest + (1 << 20), np.float32) * np.float32(0.02)
    pool = (values.view(np.uint32) + np.uint32(0x8000) >> np.uint32(16)).astype(np.uint16)
    for shape in shapes.values():
        start = random.integers(len(pool) - prod(shape) + 1)
        yield pool[start : start + prod(shape)]


def write_safetensors(path: Path, shapes: Shapes) -> None:
    """Write the header, then the tensors one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in contents(shapes):
            file.write(bits.data)


def write_directory(path: Path, shapes: Shapes, shards: int = 4) -> None:
    """Write shards of about the same number of tensors, and their index."""
    path.mkdir()
    names = list(shapes)
    weight_map = {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(path / file, {name: shapes[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text("{}")


def write_torch(path: Path, shapes: Shapes) -> None:
    """Save a state dict with torch, in the format from before 1.6 if the name ends in `.legacy.pth`."""
    import torch

    tensors = (torch.from_numpy(bits.astype(np.int16)).view(torch.bfloat16) for bits in contents(shapes))
    torch.save(
        {name: tensor.reshape(shape) for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)},
        path,
        _use_new_zipfile_serialization=not path.name.endswith(".legacy.pth"),
    )


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, metavar="OUT")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--weights", type=int, help="about how many weights, in layers of a Llama")
    size.add_argument("--tensors", type=int, help="how many tensors of 64 x 64")
    options = parser.parse_args()
    shapes = llama_shapes(options.weights) if options.weights else many_shapes(options.tensors)
    writers = {".safetensors": write_safetensors, ".pth": write_torch, "": write_directory}
    writers[options.path.suffix](options.path, shapes)


if __name__ == "__main__":
    main()
