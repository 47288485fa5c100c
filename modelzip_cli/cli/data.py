"""What the options on models and data come to."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from modelzip_cli.errors import BadOption, OutputExists, UsageError, inert

if TYPE_CHECKING:
    from pathlib import Path

    from modelzip_cli.running.aided import Study
    from modelzip_cli.running.data import DataOptions
    from modelzip_cli.running.ladder import Network


def network_of(arch: str | None, arch_args: str | None, key: str | None) -> Network:
    """The network that --arch, --arch-args and --key mean. Raises UsageError."""
    from modelzip_cli.running.architecture import parse_arch_args
    from modelzip_cli.running.ladder import Network

    if arch_args is not None and arch is None:
        raise UsageError("--arch-args are arguments of what --arch names: give both")
    return Network(arch, parse_arch_args(arch_args), key)


def data_options(
    *,
    label_key: str | None,
    text_key: str | None,
    mean: str | None,
    std: str | None,
    image_size: str | None,
    tokenizer: str | None,
    skip_bad: bool,
) -> DataOptions:
    """How data are read. Raises UsageError for values that say nothing."""
    from modelzip_cli.running.data import DataOptions
    from modelzip_cli.running.tokenizer import open_tokenizer

    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together: give both")
    return DataOptions(
        label_key=label_key,
        text_key=text_key,
        mean=_numbers(mean, "--mean"),
        std=_numbers(std, "--std", positive=True),
        image_size=_size(image_size),
        tokenizer=open_tokenizer(tokenizer) if tokenizer is not None else None,
        skip_bad=skip_bad,
    )


def _numbers(text: str | None, option: str, *, positive: bool = False) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
        raise BadOption(f"{option} {inert(text)!r}: write a number for each channel, such as 0.485,0.456,0.406")
    return values


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, separator, width = text.lower().partition("x")
    sizes = (height, width if separator else height)
    if not all(size.isascii() and size.isdigit() and 0 < int(size) <= 65_536 for size in sizes):
        raise BadOption(f"--image-size {inert(text)!r}: write a size such as 224 or 224x320")
    return int(sizes[0]), int(sizes[1])


def study_of(
    *,
    network: tuple[str | None, str | None, str | None],
    data: str | None,
    test_data: str | None,
    statistics: Path | None,
    save_statistics: Path | None,
    fail_under: tuple[tuple[str, float], ...],
    recover: int | None = None,
    seed: int | None = None,
    force: bool,
    **options: str | None,
) -> Study | None:
    """How quantize, prune and compress run the model; None without `data`, which all other options need.

    `network`: --arch, --arch-args and --key; `options`: of data. Raises UsageError.
    """
    if statistics is not None and save_statistics is not None:
        raise UsageError("--statistics are there already: --save-statistics is for those that --data gives")
    if data is None:
        given = {"arch": network[0], "arch_args": network[1], "test_data": test_data, "recover": recover, **options}
        for name, value in (given | {"save_statistics": save_statistics}).items():
            if value is not None:
                raise UsageError(f"--{name.replace('_', '-')} says how the model is run: --data says on what")
        return None
    if save_statistics is not None and save_statistics.exists() and not force:
        raise OutputExists(f"{inert(str(save_statistics))} exists; -f replaces it")
    from modelzip_cli.amounts import check_seed
    from modelzip_cli.running.aided import Study

    check_seed(seed or 0)
    read = data_options(
        label_key=options.get("label_key"),
        text_key=options.get("text_key"),
        mean=options.get("mean"),
        std=options.get("std"),
        image_size=options.get("image_size"),
        tokenizer=options.get("tokenizer"),
        skip_bad=False,
    )
    return Study(
        network_of(*network), data, read, test_data, seed or 0, statistics, save_statistics, recover or 0, fail_under
    )


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without the warnings of torch about itself, which nobody who compresses a model can act on.

    Code of the user's own runs meanwhile: what it prints goes to standard error, for the report alone is on standard
    output.
    """
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
