"""What outputs are called."""

from __future__ import annotations

import os
from pathlib import Path

from modelzip_cli.output import SUFFIXES, TORCH_SUFFIXES
from modelzip_cli.recipe import Recipe


def derived_name(path: Path, tag: str, suffix: str) -> str:
    """Stem of the source + tag + suffix: model.pth, int8, .safetensors -> model.int8.safetensors; none of a folder."""
    if path.is_dir():
        return f"{Path(os.path.abspath(path)).name}.{tag}"
    name = path.name.removesuffix(".tar") if path.name.endswith(".pth.tar") else path.name
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix in (*SUFFIXES, ".pt2") else name
    return f"{stem}.{tag}{suffix}"


def output_name(path: Path, recipe: Recipe) -> str:
    """The name of a compressed output: native files are safetensors, dense ones are like their source."""
    suffix = ".safetensors" if recipe.layout == "native" else _suffix_like(path)
    return derived_name(path, recipe.scheme, suffix)


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
