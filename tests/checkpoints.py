"""Checkpoints of every kind that people have, made by torch and safetensors: each function writes `path`, returns it.

`plain` is an ordinary small state dict; the others each have one trait that a reader or writer can get wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from modelzip_cli.tensors import DTYPES

TORCH_DTYPES = {name: getattr(torch, str(d.torch)) for name, d in DTYPES.items() if d.torch and hasattr(torch, d.torch)}
COMPLEX_32 = "c32"  # safetensors has no name for it, nor for c128
SAFETENSORS_DTYPES = {name: dtype for name, dtype in TORCH_DTYPES.items() if name not in (COMPLEX_32, "c128")}


def weights(*shape: int, seed: int = 0, sigma: float = 0.02) -> torch.Tensor:
    """Gaussian weights as networks have them, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * sigma


def state_dict() -> dict[str, torch.Tensor]:
    """An embedding, two layers with biases, a classifier and a counter."""
    return OrderedDict(
        {
            "embed.weight": weights(128, 64, seed=1),
            "layers.0.proj.weight": weights(96, 64, seed=2),
            "layers.0.proj.bias": weights(96, seed=3),
            "layers.0.norm.num_batches_tracked": torch.tensor(7),
            "layers.1.proj.weight": weights(64, 96, seed=4),
            "layers.1.proj.bias": weights(64, seed=5),
            "lm_head.weight": weights(128, 64, seed=6),
        }
    )


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The raw bytes of a tensor in C order: NaN equals NaN, -0.0 is not 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(bits_of(one), bits_of(other))


def plain_pth(path: Path) -> Path:
    """A state dict, as `torch.save(model.state_dict(), path)` writes it."""
    torch.save(state_dict(), path)
    return path


def plain_safetensors(path: Path) -> Path:
    """The same weights in a safetensors file, with the metadata that transformers writes."""
    from safetensors.torch import save_file

    save_file(dict(state_dict()), path, metadata={"format": "pt"})
    return path


def trainer_values() -> dict[str, Any]:
    """What training scripts keep beside weights: int keys, tuples, None, numbers of all sizes, an optimizer."""
    return {
        "epoch": 12,
        "best_accuracy": 0.9875,
        "step": 2**40,
        "betas": (0.9, 0.999),
        "history": [{"loss": 1.5}, {"loss": float("inf")}],
        "class_names": {0: "zero", 1: "one", -1: "other"},
        "arguments": OrderedDict(lr=1e-3, resume=None, amp=True, tags=["a", "é\n"]),
        "scheduler": {"last_epoch": 12, "_step_count": 13},
        "optimizer": {
            "state": {0: {"step": torch.tensor(5.0), "exp_avg": weights(96, 64, seed=7)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
        },
    }


def trainer_pth(path: Path) -> Path:
    """A trainer's checkpoint: the state dict under `model_state_dict`, optimizer and values around it."""
    torch.save({"model_state_dict": state_dict(), **trainer_values()}, path)
    return path


def tied_pth(path: Path) -> Path:
    """A classifier that is the embedding: one storage, two names."""
    tensors = state_dict()
    tensors["lm_head.weight"] = tensors["embed.weight"]
    torch.save(tensors, path)
    return path


def bf16_safetensors(path: Path) -> Path:
    """Weights in bfloat16, as most language models are published."""
    from safetensors.torch import save_file

    save_file({name: t.bfloat16() if t.is_floating_point() else t for name, t in state_dict().items()}, path)
    return path


def lstm_pth(path: Path) -> Path:
    """Several tensors that are parts of one storage at different offsets, as an LSTM flattened for cuDNN has them."""
    flat = weights(4 * 64 * 64 * 2 + 4 * 64 * 2, seed=8)
    shapes = {"weight_ih_l0": (256, 64), "weight_hh_l0": (256, 64), "bias_ih_l0": (256,), "bias_hh_l0": (256,)}
    tensors, begin = OrderedDict(), 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        tensors[f"lstm.{name}"] = flat[begin : begin + size].view(shape)
        begin += size
    torch.save(tensors, path)
    return path


def strided_pth(path: Path) -> Path:
    """Views that are not in C order: transposed, permuted, expanded, every other column; as convolutions for
    channels-last and Conv1D weights are saved."""
    base = weights(96, 128, seed=9)
    tensors = {
        "transposed": base.t(),
        "permuted": weights(8, 12, 10, 16, seed=10).permute(3, 1, 0, 2),
        "channels_last": weights(32, 16, 3, 3, seed=11).to(memory_format=torch.channels_last),
        "every_other": base[:, ::2],
        "expanded": weights(1, 64, seed=12).expand(96, 64),
        "whole": base,
    }
    torch.save(tensors, path)
    return path


def small_and_empty_pth(path: Path) -> Path:
    """Tensors without dimensions and tensors without elements, beside one that can be treated."""
    torch.save(small_and_empty(), path)
    return path


def small_and_empty() -> dict[str, torch.Tensor]:
    """Ranks 0 to 5 with one element or none, and a matrix."""
    return {
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0),
        "no_rows": torch.empty(0, 64),
        "no_columns": torch.empty(64, 0),
        "no_middle": torch.empty(3, 0, 128),
        "five": torch.tensor([[[[[2.5]]]]]),
        "matrix": weights(64, 64, seed=13),
    }


def of_dtype(dtype: torch.dtype, *shape: int, seed: int = 14) -> torch.Tensor:
    """A tensor with any bits that the dtype can have; NaN included where it has one."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def every_dtype_pth(path: Path) -> Path:
    """A tensor of each dtype that torch can save and modelzip reads."""
    torch.save({name: of_dtype(dtype, 5, 3) for name, dtype in TORCH_DTYPES.items()}, path)
    return path


def every_dtype_safetensors(path: Path) -> Path:
    """A tensor of each dtype that both torch and safetensors can name."""
    from safetensors.torch import save_file

    save_file({name: of_dtype(dtype, 5, 3) for name, dtype in SAFETENSORS_DTYPES.items()}, path)
    return path


ODD_NAMES = (
    "",
    ".",
    "a b",
    "tab\tand\nline",
    'quote"back\\slash',
    "é ü 漢字 🙂",
    "[bold]not markup[/bold]",
    "__metadata__x",
    "weight:codes",
    "weight:scale",
    "weight",
    "../../etc/passwd",
    "\x1b[31mred",
    "\u202egnp.exe",
    "x" * 300,
)


def odd_names_pth(path: Path) -> Path:
    """Names that break naive tools: empty, control characters, markup, the names of our own parts."""
    torch.save({name: weights(64, 64, seed=place) for place, name in enumerate(ODD_NAMES)}, path)
    return path


def odd_names_safetensors(path: Path) -> Path:
    """The same in a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: weights(64, 64, seed=place) for place, name in enumerate(ODD_NAMES)}, path)
    return path


def python_2_pth(path: Path) -> Path:
    """A file whose pickle has byte strings of Python 2 for names (SHORT_BINSTRING), as old exporters left them."""
    import zipfile

    plain_pth(path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    rewritten = {
        name: _with_byte_strings(data) if name.endswith("/data.pkl") else data for name, data in entries.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in rewritten.items():
            archive.writestr(name, data)
    return path


def _with_byte_strings(pickle: bytes) -> bytes:
    """Turn each BINUNICODE of the names of `state_dict` into a SHORT_BINSTRING."""
    for name in state_dict():
        raw = name.encode()
        pickle = pickle.replace(b"X" + len(raw).to_bytes(4, "little") + raw, b"U" + bytes([len(raw)]) + raw)
    return pickle
