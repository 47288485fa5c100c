"""Arrays as data: `.npz` with `x` and maybe `y`, `.npy` with x alone; and examples in memory, as tables give them too.

Arrays stay in memory in the dtype of their file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelzip_cli.errors import BadData
from modelzip_cli.running.content import Origin
from modelzip_cli.running.inputs import IGNORED, Batch, Examples, Rows, Wanted, fingerprint
from modelzip_cli.running.npy import read_arrays
from modelzip_cli.running.pixels import UNNORMALISED, Pixels, Preparation, check_channels

Array = NDArray[Any]
Convert = Callable[[Array], Tensor]

ONE_HOT = "; of one-hot rows store y.argmax(axis=1)"
EXACT = 2.0**53  # below, floats hold whole numbers exactly
LOOKED_AT = 64  # examples that tell whether pictures lie in 0..1


def as_floats(stored: Array) -> Tensor:
    """Any numbers as float32, a copy."""
    return torch.from_numpy(stored.astype(np.float32))


def as_tokens(stored: Array) -> Tensor:
    """Whole numbers as int64, a copy."""
    return torch.from_numpy(stored.astype(np.int64))


class ArrayExamples(Examples):
    """Examples along axis 0 of arrays in memory; a batch is an index and a cast.

    `x` [n, ...] becomes the input by `convert`. `labels`: integers [n], or [n, time] for a label a position. `mask`
    [n, time] is a second input, which says what positions count.
    """

    def __init__(
        self, origin: Origin, x: Array, labels: Array | None, convert: Convert, mask: Array | None = None
    ) -> None:
        self.label, self.classes, self.warnings = origin.label, origin.classes, origin.warnings
        self.labels, self.labelled = labels, labels is not None
        self.a_label_a_position = labels is not None and labels.ndim == 2
        self.fingerprint = origin.digest
        self._place, self._x, self._convert, self._mask = origin.place, x, convert, mask

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, rows: Rows) -> Batch:
        """Index and cast."""
        x = self._convert(self._x[rows])
        inputs = (x,) if self._mask is None else (x, as_tokens(self._mask[rows]))
        return Batch(inputs, None if self.labels is None else as_tokens(self.labels[rows]))

    def place(self, row: int) -> str:
        """The line of a table, or the number of the example."""
        return self._place(row)


def open_arrays(content: bytes, origin: Origin, wanted: Wanted, images: Preparation) -> ArrayExamples:
    """The examples of an `.npz` or `.npy` file, its bytes in `content`: see `float_examples` and `token_examples`.

    Raises BadData for damaged files and shapes that do not fit the model, UnsafeInput for pickled objects.
    """
    label, arrays = origin.label, read_arrays(content, origin.label)
    x, y = arrays["x"], arrays.get("y")
    if x.ndim < 2:
        raise BadData(f"{label}: x is {show_shape(x.shape)}: examples lie along axis 0, their values along the others")
    if y is not None and y.shape[:1] != x.shape[:1]:
        raise BadData(f"{label}: x is {show_shape(x.shape)}, but y is {show_shape(y.shape)}: a label for each example")
    labels = None if y is None else as_labels(y, label)
    if wanted.kind == "tokens":
        return token_examples(x, labels, origin, wanted, arrays.get("attention_mask"))
    if labels is not None and labels.ndim != 1:
        raise BadData(f"{label}: y is {show_shape(labels.shape)}, but labels are [{len(x)}]{ONE_HOT}")
    return float_examples(x, labels, origin, wanted, images)


def float_examples(
    x: Array, labels: Array | None, origin: Origin, wanted: Wanted, images: Preparation
) -> ArrayExamples:
    """Pictures or features, numbers [n, ...], for a model that takes floats; `labels` [n].

    uint8 is pixels: over 255, normalised as `images` says, channels moved to the front where the model's shape says so,
    with a warning. Other numbers are taken as they are, and normalised only where the user asked for it.
    """
    channels_last = x.dtype == np.uint8 and _channels_are_last(x.shape[1:], wanted)
    shape = (x.shape[-1], *x.shape[1:-1]) if channels_last else x.shape[1:]
    check_shape(shape, wanted, origin.label)
    if x.dtype != np.uint8 and not images.asked:
        if images.mean is not None and _lies_in_0_to_1(x[:LOOKED_AT]):
            origin = origin.warn(f"x lies in 0..1 and is taken as it is; {images.source} names a mean: see --mean")
        return ArrayExamples(_prepared(origin, "floats"), x, labels, as_floats)
    check_channels(images, shape[0], origin.label)
    pixels = Pixels(255 if x.dtype == np.uint8 else 1, images.mean, images.std, channels_last)
    if x.dtype == np.uint8:
        origin = origin.warn("x is uint8: taken as pixels, over 255; store it as float32 to have it taken as it is")
        origin = origin if images.mean is not None else origin.warn(UNNORMALISED)
    return ArrayExamples(_prepared(origin, pixels), x, labels, pixels)


def _channels_are_last(shape: tuple[int, ...], wanted: Wanted) -> bool:
    """Whether pictures [height, width, channels] fit the model only once their channels stand first."""
    if len(shape) != 3 or wanted.shape is None:
        return False
    return not fits(shape, wanted.shape) and fits((shape[2], *shape[:2]), wanted.shape)


def _lies_in_0_to_1(x: Array) -> bool:
    return bool(x.dtype.kind == "f" and x.min() >= 0 and x.max() <= 1)


def _prepared(origin: Origin, *how: object) -> Origin:
    return replace(origin, digest=fingerprint(origin.digest, *map(repr, how)))


def token_examples(
    x: Array, labels: Array | None, origin: Origin, wanted: Wanted, mask: Array | None = None
) -> ArrayExamples:
    """Token sequences of one length, integers [n, time], with `labels` [n] or [n, time].

    Without labels they are for a language model, unless the model is known to be none: each position is labelled with
    the token after it, and the last falls away. A second input, where the model takes one, is `mask`; None: all ones.
    """
    label = origin.label
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise BadData(f"{label}: x is {x.dtype} {show_shape(x.shape)}, but the model takes tokens: integers [n, time]")
    if mask is not None and (mask.shape != x.shape or mask.dtype.kind not in "biu"):
        raise BadData(f"{label}: attention_mask is {mask.dtype} {show_shape(mask.shape)}, but x {show_shape(x.shape)}")
    if labels is not None and labels.ndim != 1 and labels.shape != x.shape:
        raise BadData(f"{label}: y is {show_shape(labels.shape)}, neither [n] nor {show_shape(x.shape)} as x{ONE_HOT}")
    counted = np.broadcast_to(np.uint8(1), x.shape) if mask is None else mask
    if labels is None and wanted.positions is not False:
        if x.shape[1] < 2:
            raise BadData(f"{label}: x is {show_shape(x.shape)}: one token has none after it to be its label")
        labels = x[:, 1:] if mask is None else np.where(mask[:, 1:] != 0, x[:, 1:].astype(np.int64), IGNORED)
        x, counted = x[:, :-1], counted[:, :-1]
    check_shape(x.shape[1:], wanted, label)
    origin = _prepared(origin, "tokens", wanted.positions, wanted.inputs > 1)
    return ArrayExamples(origin, x, labels, as_tokens, counted if wanted.inputs > 1 else None)


def as_labels(y: Array, label: str) -> Array:
    """`y` as integers, in its own dtype where that is one. Raises BadData for fractions."""
    if y.dtype.kind == "f" and not ((np.abs(y) < EXACT) & (y == np.trunc(y))).all():
        raise BadData(f"{label}: y is {y.dtype} with fractions; labels are whole numbers, 0 for the first class")
    return y if y.dtype.kind in "iu" else y.astype(np.int64)


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether an example of `shape` is what a model of input shape `wanted` takes."""
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))


def check_shape(shape: tuple[int, ...], wanted: Wanted, label: str) -> None:
    """Raise BadData, with both shapes and what may help, where examples of `shape` are not what the model takes."""
    most = wanted.context
    if wanted.kind == "tokens" and most is not None and shape and shape[0] > most:
        raise BadData(f"{label}: {shape[0]} tokens, but the model takes at most {most}; cut them: x[:, :{most}]")
    if wanted.shape is None or fits(shape, wanted.shape):
        return
    given, taken, hint = show_shape(("n", *shape)), show_shape(("n", *wanted.shape)), ""
    sizes = [size for size in wanted.shape if size is not None]
    if len(shape) == 3 and fits((shape[2], *shape[:2]), wanted.shape):
        hint = "; x.transpose(0, 3, 1, 2) puts the channels first"
    elif len(sizes) == len(wanted.shape) and prod(shape) == prod(sizes):
        hint = f"; x.reshape({', '.join(map(str, (-1, *sizes)))}) is that"
    raise BadData(f"{label}: examples are {given}, but the model takes {taken}{hint}")


def show_shape(shape: tuple[int | str | None, ...]) -> str:
    """A shape as people write it, `*` for any length: `[n, 1, *, 8]`."""
    return f"[{', '.join('*' if size is None else str(size) for size in shape)}]"
