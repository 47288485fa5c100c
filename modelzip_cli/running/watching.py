"""What a layer is given while a model runs: the inputs of its weights as rows of a matrix.

Layers are found where they are computed, as calls of `linear` and `conv` with a weight of the model: so modules and
exported graphs are the same. Source: PyTorch 2.13, torch/overrides.py (`TorchFunctionMode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CHUNK = 1 << 22  # numbers of unfolded pictures that are held at a time

aten = torch.ops.aten
LINEAR = (F.linear, aten.linear.default)
CONVOLUTIONS = (F.conv1d, aten.conv1d.default, F.conv2d, aten.conv2d.default)
PADDED = (aten.conv1d.padding, aten.conv2d.padding)  # where padding is a word
ATTENTION = F.multi_head_attention_forward
# The same without the check that hands it to a mode as a whole, so that the layers in it come one by one.
OPENED = FunctionType(
    ATTENTION.__code__,
    {**ATTENTION.__globals__, "has_torch_function": lambda tensors: False},
    ATTENTION.__name__,
    ATTENTION.__defaults__,
)

Seen = Callable[[str, Tensor], None]  # told the name of a weight and inputs [positions, columns]


class Watch(TorchFunctionMode):
    """While it is entered, tells `seen` what the weights called `wanted` are multiplied with.

    `counted` bool [batch, time], if set: which positions of a text are no padding. A convolution of several groups is
    left out, as its rows have different inputs; so is one in three dimensions. Of a weight with several names all
    are told.
    """

    def __init__(self, module: nn.Module, wanted: Mapping[str, str], seen: Seen) -> None:
        """`wanted`: names of the module's parameters -> names to tell."""
        super().__init__()
        self._names: dict[tuple[int, torch.Size], list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in wanted:
                self._names.setdefault((parameter.data_ptr(), parameter.shape), []).append(wanted[name])
        self._seen = seen
        self.counted: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._attention(args, kwargs)
        if func in LINEAR or func in CONVOLUTIONS or func in PADDED:
            x, weight = (
                args[place] if place < len(args) else kwargs.get(name) for place, name in enumerate(("input", "weight"))
            )
            names = self._names.get((weight.data_ptr(), weight.shape)) if isinstance(weight, Tensor) else None
            if names is not None and isinstance(weight, Tensor) and isinstance(x, Tensor):
                with torch.no_grad():
                    for rows in self._rows(func, x, weight.shape, args, kwargs):
                        for name in names:
                            self._seen(name, rows)
        return func(*args, **kwargs)

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self.counted
        self.counted = None if before is None else before.T  # in there, time is the first axis
        try:
            with self:
                return OPENED(*args, **kwargs)
        finally:
            self.counted = before

    def _rows(self, func: Any, x: Tensor, shape: torch.Size, args: Any, kwargs: Any) -> Iterator[Tensor]:
        x = x.detach()
        if func in LINEAR:
            rows = x.reshape(-1, x.shape[-1])
            counted = self.counted
            if counted is not None and x.shape[:-1] in (counted.shape, (counted.numel(),)):
                rows = rows[counted.reshape(-1)]
            yield rows
            return
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("groups", 1) == 1:
            yield from unfolded(x, shape, given)


def unfolded(x: Tensor, shape: torch.Size, given: Mapping[str, Any]) -> Iterator[Tensor]:
    """The patches [positions, inputs * kernel] that a convolution with a weight of `shape` sees, a part at a time.

    x [batch, inputs, ..., width]; one batch axis may be missing. Columns are in the order of `weight.flatten(1)`.
    """
    kernel = tuple(shape[2:])
    if x.ndim == len(kernel) + 1:
        x = x[None]
    dilation, stride = (_each(given.get(name, 1), len(kernel)) for name in ("dilation", "stride"))
    padding = given.get("padding", 0)
    if padding == "same":  # the larger half goes behind
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        x = F.pad(x, [part for size in reversed(whole) for part in (size // 2, size - size // 2)])
    padding = (0,) * len(kernel) if isinstance(padding, str) else _each(padding, len(kernel))
    if len(kernel) == 1:
        x, kernel = x[:, :, None], (1, *kernel)
        dilation, stride, padding = (1, *dilation), (1, *stride), (0, *padding)
    step = max(1, CHUNK // max(1, x[0].numel() * kernel[0] * kernel[1]))
    for part in torch.split(x, step):
        yield F.unfold(part, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) if len(value) == axes else tuple(value) * axes
