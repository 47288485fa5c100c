"""Folders of pictures as data, prepared as torchvision and timm do for evaluation. Pillow decodes.

A folder in the folder is a class, and what lies in it, at any depth, its pictures (torchvision's ImageFolder); without
any, pictures have no labels. Pictures are converted to the channels of the model, resized (bicubic, antialiased) and
cropped in the centre. As in torchvision and timm, the orientation in the EXIF data of a photograph is not applied.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import compress
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from modelzip_cli.containers.hf_directory import is_hugging_face
from modelzip_cli.errors import BadData, ModelzipError, UsageError, inert
from modelzip_cli.running.arrays import check_shape
from modelzip_cli.running.content import Origin
from modelzip_cli.running.extras import require
from modelzip_cli.running.inputs import Batch, Examples, Rows, Wanted, fingerprint
from modelzip_cli.running.labels import number_classes
from modelzip_cli.running.pixels import UNNORMALISED, Pixels, Preparation, check_channels
from modelzip_cli.single import default_jobs

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"})
MOST_JOBS = 8  # threads; past it they wait for each other

Decode = Callable[[Path], NDArray[np.uint8]]


class PictureExamples(Examples):
    """Pictures in files, decoded by a few threads when a batch is asked for: Pillow lets go of the GIL."""

    def __init__(
        self,
        origin: Origin,
        paths: Sequence[Path],
        labels: NDArray[np.int64] | None,
        decode: Decode,
        pixels: Pixels,
    ) -> None:
        self.label, self.classes, self.warnings = origin.label, origin.classes, origin.warnings
        self.labels, self.labelled = labels, labels is not None
        self.fingerprint = origin.digest
        self._paths, self._decode, self._pixels = paths, decode, pixels
        self._threads = ThreadPoolExecutor(min(default_jobs(), MOST_JOBS))

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: Rows) -> Batch:
        """Decode and normalise, float32 [batch, channels, height, width]."""
        pictures = np.stack(list(self._threads.map(self._decode, [self._paths[row] for row in rows])))
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch((self._pixels(pictures),), labels)

    def place(self, row: int) -> str:
        """The picture's path."""
        return inert(str(self._paths[row]))


def open_folder(root: Path, wanted: Wanted, images: Preparation, *, skip_bad: bool) -> PictureExamples:
    """The pictures in a folder, in the order of their paths.

    With `skip_bad` every picture is decoded once here, and those that cannot be are left out with a warning: no header
    tells that a file is cut short, and the number of examples must not change later. Without it a picture is read when
    its batch is. Raises UsageError for a folder without pictures, or a model that takes none; BadData for pictures of
    different sizes where none is named; MissingExtra without modelzip[images].
    """
    label = inert(str(root))
    if wanted.kind != "floats":
        raise UsageError(f"{label}: a folder of pictures, but the model takes tokens")
    require("PIL", "images", label)
    from PIL.Image import DecompressionBombWarning

    warnings.filterwarnings("error", category=DecompressionBombWarning)  # as Pillow's documentation advises
    mode = _mode(wanted, images, label)
    by_class, others = _find_pictures(root)
    _check_found(by_class, root)
    origin, numbers = _classes(by_class, Origin(label, ""), wanted)
    if others:
        origin = origin.warn(f"ignored, as no pictures, hidden, or beside the classes: {others:,}")
    if images.mean is None:
        origin = origin.warn(UNNORMALISED)

    paths = [path for found in by_class.values() for path in found]
    labels = None if numbers is None else np.repeat(numbers, [len(found) for found in by_class.values()])
    decode = partial(_decode, mode=mode, size=images.size, crop=images.crop)
    if skip_bad:
        good = _decodable(paths, decode)
        if not good.any():
            raise BadData(f"{label}: none of its pictures can be read")
        if not good.all():
            bad, first = np.sum(~good), paths[np.argmin(good)]
            origin = origin.warn(f"left out, as they cannot be read: {bad:,} pictures, first {_name(first)}")
        paths, labels = list(compress(paths, good)), None if labels is None else labels[good]
    size = images.size or _common_size(paths)
    check_shape((len(mode), *size), wanted, label)
    files = tuple(_name_and_bytes(path, root) for path in paths)
    digest = fingerprint(files, origin.classes, mode, images.size, images.crop, images.mean, images.std)
    pixels = Pixels(255, images.mean, images.std, channels_last=True)
    return PictureExamples(replace(origin, digest=digest), paths, labels, decode, pixels)


def _mode(wanted: Wanted, images: Preparation, label: str) -> str:
    """Pillow's name for the channels that the model takes, RGB where it says nothing: one letter a channel."""
    channels = wanted.shape[0] if wanted.shape is not None and len(wanted.shape) == 3 else None
    mode = MODES.get(3 if channels is None else channels)
    if mode is None:
        raise BadData(f"{label}: the model takes {channels} channels, but pictures have 1, 3 or 4")
    check_channels(images, len(mode), label)
    return mode


def _find_pictures(root: Path) -> tuple[dict[str, list[Path]], int]:
    """Pictures by class, or all as class "" where no folder has any; and how many other entries there are.

    Hidden names are passed over, and so are links that lead back: a folder is read once for a class.
    Raises ModelzipError for a folder that cannot be read.
    """
    try:
        entries = sorted(root.iterdir())
        folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        found = {folder.name: _pictures_below(folder, root) for folder in folders}
        flat = [entry for entry in entries if _is_picture(entry)]
    except OSError as error:
        raise ModelzipError(f"{inert(str(error.filename))}: cannot read: {error.strerror}") from error
    if not any(pictures for pictures, _ in found.values()):
        return {"": flat}, len(entries) - len(flat)
    others = len(entries) - len(folders) + sum(others for _, others in found.values())
    return {name: pictures for name, (pictures, _) in found.items()}, others


def _pictures_below(folder: Path, root: Path) -> tuple[list[Path], int]:
    """The pictures in a folder and in those below, by path, and how many other entries there are."""
    found: list[Path] = []
    others = 0
    seen, pending = {_identity(root), _identity(folder)}, [folder]
    while pending:
        for entry in pending.pop().iterdir():
            if _is_picture(entry):
                found.append(entry)
            elif entry.name.startswith(".") or not entry.is_dir() or _identity(entry) in seen:
                others += 1
            else:
                seen.add(_identity(entry))
                pending.append(entry)
    return sorted(found, key=os.fspath), others


def _is_picture(entry: Path) -> bool:
    return entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _name(path: Path) -> str:
    return inert(str(path))


def _check_found(by_class: dict[str, list[Path]], root: Path) -> None:
    """Refuse a folder without pictures, and one whose folders are no classes."""
    label = _name(root)
    if not any(by_class.values()) and is_hugging_face(root):
        raise UsageError(f"{label}: a model, not data")
    if not any(by_class.values()):
        raise UsageError(f"{label}: no pictures in this folder or in folders of it ({', '.join(SUFFIXES)})")
    if {name.lower() for name in by_class} <= SPLITS:
        raise UsageError(f"{label}: holds {', '.join(map(inert, by_class))}; give one of these folders")


def _classes(
    by_class: dict[str, list[Path]], origin: Origin, wanted: Wanted
) -> tuple[Origin, NDArray[np.int64] | None]:
    """The names of classes, and the number of each in `by_class`; None where there are none."""
    if set(by_class) == {""}:
        return origin, None
    classes, warnings = number_classes(by_class, wanted.classes)
    empty = [inert(name, longest=40) for name, found in by_class.items() if not found]
    if empty:
        warnings += (f"classes without pictures, which have numbers all the same: {', '.join(empty[:8])}",)
    numbers = np.array([classes.index(name) for name in by_class], np.int64)
    return replace(origin, classes=classes).warn(*warnings), numbers


def _decodable(paths: Sequence[Path], decode: Decode) -> NDArray[np.bool_]:
    """Which pictures can be decoded, [pictures]."""

    def can_be(path: Path) -> bool:
        try:
            decode(path)
        except BadData:
            return False
        return True

    with ThreadPoolExecutor(min(default_jobs(), MOST_JOBS)) as threads:
        return np.fromiter(threads.map(can_be, paths), np.bool_, len(paths))


def _name_and_bytes(path: Path, root: Path) -> tuple[str, int]:
    """A picture in the fingerprint: its path in the folder, and its size."""
    try:
        return os.path.relpath(path, root), path.stat().st_size
    except OSError as error:
        raise ModelzipError(f"{_name(path)}: cannot read: {error.strerror}") from error


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all pictures, from their headers. Raises BadData that names two which differ."""
    first = _size(paths[0])
    for path in paths[1:]:
        if (size := _size(path)) != first:
            raise BadData(
                f"{_name(paths[0])} is {first[0]} x {first[1]} (height x width), {_name(path)} {size[0]} x {size[1]}; "
                "--image-size makes them one size"
            )
    return first


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(path: Path) -> Iterator[Picture]:
    """A picture, opened but not decoded. Whatever goes wrong with it inside the block is BadData, too."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(path.read_bytes())) as picture:
            yield picture
    except ModelzipError:
        raise
    except Exception as error:  # a damaged picture raises a dozen kinds: OSError, SyntaxError, struct.error, ...
        reason = (
            "no picture that Pillow knows"
            if isinstance(error, UnidentifiedImageError)
            else inert(str(error).rstrip("."), longest=200)
        )
        raise BadData(f"{_name(path)}: {reason}; --skip-bad leaves such pictures out") from error


def _decode(path: Path, *, mode: str, size: tuple[int, int] | None, crop: float) -> NDArray[np.uint8]:
    """A picture as uint8 [height, width, channels] of `size`. Raises BadData for what Pillow does not read to its end,
    for more pixels than its limit, and for more than 8 bits a channel, which it would clip and not scale."""
    with _opened(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise BadData(f"{_name(path)}: has more than 8 bits a channel ({picture.mode}); convert it")
        converted = picture.convert(mode)
        fitted = converted if size is None else resize_and_crop(converted, size, crop)
        return np.asarray(fitted).reshape(fitted.height, fitted.width, len(mode))


def resize_and_crop(picture: Picture, size: tuple[int, int], crop: float) -> Picture:
    """Resize so that `crop` of the picture covers `size` (height, width), and take that from the centre.

    Sides round as in timm (down, size / crop) and torchvision (down, the longer side; to even, the offset of the crop).
    """
    from PIL import Image

    height, width = (floor(side / crop) for side in size)
    if height * picture.width >= width * picture.height:  # the height decides
        width = height * picture.width // picture.height
    else:
        height = width * picture.height // picture.width
    if height * width > (Image.MAX_IMAGE_PIXELS or height * width):
        raise Image.DecompressionBombError(f"{picture.height} x {picture.width} would become {height} x {width} pixels")
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size[1]) / 2), round((height - size[0]) / 2)
    return resized.crop((left, top, left + size[1], top + size[0]))
