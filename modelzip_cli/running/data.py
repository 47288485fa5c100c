"""What `--data` names, opened: folders of pictures, arrays, tables, text, and data sets of the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.running.arrays import open_arrays
from modelzip_cli.running.content import read_file
from modelzip_cli.running.images import open_folder
from modelzip_cli.running.import_path import is_import_path
from modelzip_cli.running.inputs import Converted, Examples, Wanted
from modelzip_cli.running.pixels import prepare
from modelzip_cli.running.tables import READERS, open_table
from modelzip_cli.running.text import open_text
from modelzip_cli.running.user_data import open_dataset

ARRAYS = (".npz", ".npy")
TEXT = ".txt"
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pt2")
TAKEN = (
    "--data takes a folder of pictures, .npz (x, y), .npy, .csv, .tsv, .jsonl, .parquet, .arrow, .feather, .txt, or "
    "module:function or file.py:function that gives a data set"
)


@dataclass(frozen=True)
class DataOptions:
    """What the command line says about data; None leaves it to the data and the model.

    `label_key`, `text_key`: columns of a table. `mean`, `std`: one a channel, or one for all; `image_size`: height and
    width of the model's input. `tokenizer`: text -> tokens. `skip_bad`: leave out pictures that cannot be read.
    """

    label_key: str | None = None
    text_key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    tokenizer: Callable[[str], list[int]] | None = None
    skip_bad: bool = False


def open_data(path: str, wanted: Wanted, options: DataOptions) -> Examples:
    """The examples at `path` as inputs for a model that takes what is `wanted`.

    A file or folder that is there wins over an import path. Raises FileNotThere; UsageError for what is no data and
    options that do not fit; BadData for damaged data, or data that does not fit the model; UnsafeInput for pickles;
    MissingExtra for a kind whose library is not installed.
    """
    found = _opened(path, wanted, options)
    return found if wanted.dtype is None else Converted(found, wanted.dtype)


def _opened(path: str, wanted: Wanted, options: DataOptions) -> Examples:
    images = prepare(options.mean, options.std, options.image_size, wanted)
    place, suffix, encode = Path(path), Path(path).suffix.lower(), options.tokenizer or wanted.tokenizer
    if place.is_dir():
        _check_unused(path, options, "label_key", "text_key")
        return open_folder(place, wanted, images, skip_bad=options.skip_bad)
    if is_import_path(path) and not place.exists():
        _check_unused(path, options, "label_key", "text_key", "image_size", "mean")
        return open_dataset(path, wanted)
    if suffix not in (*ARRAYS, *READERS, TEXT):
        if not place.exists():
            SourceFile(place).close()  # which raises FileNotThere, with the name that is nearest
        what = "a checkpoint, not data" if suffix in CHECKPOINTS else f"no data by its suffix {inert(suffix)!r}"
        raise UsageError(f"{inert(path)}: {what}; {TAKEN}")
    _check_unused(path, options, "image_size", *(["mean"] if wanted.kind == "tokens" else []))
    content, origin = read_file(place)
    if suffix in READERS:
        keys = {"label_key": options.label_key, "text_key": options.text_key}
        return open_table(content, suffix, origin, wanted, images, encode, **keys)
    _check_unused(path, options, "label_key", "text_key")
    if suffix == TEXT:
        return open_text(content, origin, wanted, encode)
    return open_arrays(content, origin, wanted, images)


def _check_unused(path: str, options: DataOptions, *names: str) -> None:
    """Raise UsageError for an option that says nothing of this kind of data."""
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"{inert(path)}: --{name.replace('_', '-')} does not apply to this kind of data")
