"""What outputs are called."""

from __future__ import annotations

import os
from pathlib import Path

from modelzip_cli.amounts import Depth, Pruning
from modelzip_cli.layouts.native import LOSSLESS
from modelzip_cli.output import SUFFIXES, TORCH_SUFFIXES
from modelzip_cli.recipe import Recipe
from modelzip_cli.schemes import KEEP


def derived_name(path: Path, tag: str, suffix: str) -> str:
    """Stem of the source + tag + suffix: model.pth, int8, .safetensors -> model.int8.safetensors; none of a folder."""
    if path.is_dir():
        return f"{Path(os.path.abspath(path)).name}.{tag}"
    name = path.name.removesuffix(".tar") if path.name.endswith(".pth.tar") else path.name
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix in (*SUFFIXES, ".pt2") else name
    return f"{stem}.{tag}{suffix}"


def file_name(path: Path, tag: str, suffix: str) -> str:
    """The same for an output that is a file, also where the source is a folder."""
    return derived_name(path, tag, suffix) + (suffix if path.is_dir() else "")


def output_name(path: Path, recipe: Recipe) -> str:
    """The name of a compressed output: native files are safetensors, dense ones are like their source."""
    suffix = ".safetensors" if recipe.layout == "native" else _suffix_like(path)
    return derived_name(path, tag_of(recipe), suffix)


def tag_of(recipe: Recipe) -> str:
    """What names an output between stem and suffix: what is pruned, and the scheme or the goal."""
    scheme = _scheme_tag(recipe)
    if recipe.pruning is None and recipe.depth is None:
        return scheme
    parts = [depth_tag(recipe.depth)] if recipe.depth else []
    parts += [pruning_tag(recipe.pruning)] if recipe.pruning else []
    return "-".join(parts + ([] if recipe.goal is None and recipe.scheme in (LOSSLESS, KEEP) else [scheme]))


def depth_tag(asked: Depth) -> str:
    """d75 for 75 % of the layers, without3.7 for those."""
    if asked.share is not None:
        return f"d{100 * asked.share:.6g}"
    return f"without{'.'.join(map(str, asked.layers))}"


def pruning_tag(asked: Pruning) -> str:
    """p70 for 70 % zeros, t0.001 for a threshold, 2of4 for 2:4."""
    if asked.pattern is not None:
        return asked.pattern.replace(":", "of")
    amount = f"t{asked.threshold:g}" if asked.sparsity is None else f"p{100 * asked.sparsity:.6g}"
    return amount if asked.criterion == "magnitude" else f"{amount}-{asked.criterion}"


def _scheme_tag(recipe: Recipe) -> str:
    goal = recipe.goal
    if goal is None:
        return recipe.scheme
    if goal.kind == "ratio":
        return f"{goal.value:g}x"
    if goal.kind == "target_size":
        return size_tag(goal.value)
    return f"{recipe.scheme}-{goal.value:g}{'bpw' if goal.kind == 'bpw' else 'dB'}"


def size_tag(size: float) -> str:
    """A size as it was given: 25MB, 1.5MiB, 900kB."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        for name, value in ((unit, step), (f"{unit[0].upper()}iB", 1 << {"G": 30, "M": 20, "k": 10}[unit[0]])):
            if size >= value and len(f"{size / value:.6g}") <= 5:
                return f"{size / value:.6g}{name}"
    return f"{size:.0f}B"


def restored_name(path: Path) -> str:
    """The name of a restored file: the container of the original source, and its suffix where that is a known one."""
    from modelzip_cli.layouts.native_source import NativeSource
    from modelzip_cli.source import open_source

    source = open_source(path)
    source.close()
    if not isinstance(source, NativeSource) or source.manifest["source"]["container"] != "torch":
        return derived_name(path, "restored", ".safetensors")
    suffix = Path(str(source.manifest["source"].get("name"))).suffix
    return derived_name(path, "restored", suffix if suffix in TORCH_SUFFIXES else ".pth")


def _suffix_like(path: Path) -> str:
    if path.suffix in SUFFIXES or path.is_dir():
        return path.suffix
    from modelzip_cli.source import open_source

    source = open_source(path)
    source.close()
    return ".pth" if source.container == "torch" else ".safetensors"
