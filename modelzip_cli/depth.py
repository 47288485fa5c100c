"""Fewer layers: a checkpoint without some of its repeated blocks, those that are left numbered anew.

Which go where only a share is given: those before the last, from the end on. Source: Gromov, Tirumala, Shapourian,
Glorioso and Roberts, The unreasonable ineffectiveness of the deeper layers, arXiv:2403.17887, section 4.4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.amounts import Depth
from modelzip_cli.containers.hf_directory import HfDirectory
from modelzip_cli.containers.outer import Outer
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.recipe import Recipe
from modelzip_cli.source import Checkpoint, files_of, open_source
from modelzip_cli.tensors import TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

CONFIG = "config.json"
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "n_block", "n_blocks", "depth")
SIDED_COUNTS = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
OF_THE_MODEL = ("architectures", "token", "factor", "rope", "mean", "std", "size")  # keys of other lists have these
MOST_CONFIG = 10_000_000


@dataclass(frozen=True)
class Dropped:
    """What `--depth` or `--drop-layers` came to: the blocks `stack.N`, how many there were, and which are gone."""

    stack: str
    layers: int
    gone: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {"stack": inert(self.stack), "layers": self.layers, "dropped": [*self.gone]}


class Shallow:
    """A checkpoint without some blocks. `old`: the old name of each tensor that is left; `gone` are the others."""

    def __init__(self, source: Checkpoint, renamed: Mapping[str, str | None], dropped: Dropped) -> None:
        names = {name: renamed.get(name, name) for name in source.specs}
        self._source, self.dropped = source, dropped
        self._old = {new: name for name, new in names.items() if new is not None}
        self.specs = {
            new: TensorSpec(new, source.specs[old].dtype, source.specs[old].shape) for new, old in self._old.items()
        }
        self.gone = tuple(source.specs[name] for name, new in names.items() if new is None)
        self.outer = source.outer and _without(source.outer, names)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """The units [start, stop) of a tensor by its new name."""
        return self._source.read(self._old.get(name, name), start, stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _without(outer: Outer, names: Mapping[str, str | None]) -> Outer:
    """What is around the weights, by the new names; a tie whose owner is gone goes to the next of its names."""
    kept = tuple(new for name in outer.names if (new := names.get(name, name)) is not None)
    ties: dict[str, str] = {}
    heirs: dict[str, str] = {}
    for name, owner in outer.ties.items():
        new, of = names.get(name, name), names.get(owner, owner)
        if new is not None and of is not None:
            ties[new] = of
        elif new is not None and heirs.setdefault(owner, new) != new:
            ties[new] = heirs[owner]
    return Outer(outer.tree, kept, ties)


def open_for(path: Path, recipe: Recipe) -> Checkpoint:
    """Open the checkpoint at `path` as `recipe` takes it: without the layers that it drops."""
    source = open_source(path, key=recipe.key, keep_extras=recipe.keep_extras)
    if recipe.depth is None:
        return source
    try:
        dropped = choose(source.specs, recipe.depth, source.file.label)
        renamed = _renamed(source.specs, dropped)
        if not isinstance(source, HfDirectory):
            return Shallow(source, renamed, dropped)
        directory = source.with_shards(lambda shard: Shallow(shard, renamed, dropped))
        if CONFIG in source.file.others:
            text, warning = _config(source.file.path / CONFIG, dropped)
            directory.rewritten = {CONFIG: text} if text is not None else {}
            directory.warnings += (warning,) if warning else ()
        return directory
    except BaseException:
        source.close()
        raise


def dropped_from(source: Checkpoint) -> tuple[Dropped | None, tuple[TensorSpec, ...]]:
    """The layers that are missing from what `open_for` opened, and their tensors."""
    files = [file for file in files_of(source) if isinstance(file, Shallow)]
    return (files[0].dropped if files else None), tuple(spec for file in files for spec in file.gone)


def choose(specs: Mapping[str, TensorSpec], asked: Depth, label: str) -> Dropped:
    """Find the blocks that are meant and those of them that go. Raises UsageError where the names do not repeat."""
    stacks = find_stacks(specs)
    if not stacks:
        raise UsageError(f"{label}: no repeated blocks: names such as layers.0.X, layers.1.X of the same shapes")
    if asked.stack is not None and asked.stack not in stacks:
        raise UsageError(f"{label}: no blocks {inert(asked.stack)}.N repeat; there are {_listed(stacks)}")
    if asked.stack is None and len(stacks) > 1:
        first = next(iter(stacks))
        raise UsageError(
            f"{label}: {_listed(stacks)} repeat: say which, as in {inert(first)}:0.75 or {inert(first)}:3,7"
        )
    stack = asked.stack or next(iter(stacks))
    layers = stacks[stack]
    if asked.share is None:
        gone = asked.layers
        if gone[-1] >= layers:
            raise UsageError(f"{label}: no layer {gone[-1]}: {inert(stack)} has 0 to {layers - 1}")
    else:
        keep = max(1, round(asked.share * layers))
        gone = tuple(range(keep - 1, layers - 1)) if keep < layers else ()
        if not gone:
            raise UsageError(f"{label}: {asked.share:g} of {layers} layers are all of them")
    if len(gone) == layers:
        raise UsageError(f"{label}: that would drop all {layers} layers of {inert(stack)}")
    return Dropped(stack, layers, gone)


def _listed(stacks: Mapping[str, int]) -> str:
    return ", ".join(f"{inert(stack)} ({layers} layers)" for stack, layers in stacks.items())


def find_stacks(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """The repeated blocks of a model: how many there are of each, by what stands before their number.

    Blocks repeat where they are numbered from 0 without a gap and have the same tensors, in shape and dtype. Of blocks
    inside blocks, only the outer ones count.
    """
    blocks: dict[str, dict[int, dict[str, TensorSpec]]] = {}
    for name, spec in specs.items():
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isascii() and part.isdigit()), 0)
        if 0 < place < len(parts) - 1 and len(parts[place]) < 7:
            inside = blocks.setdefault(".".join(parts[:place]), {}).setdefault(int(parts[place]), {})
            inside[".".join(parts[place + 1 :])] = spec
    found = {}
    for stack, numbered in blocks.items():
        kinds = {tuple(sorted((n, s.dtype.id, s.shape) for n, s in inside.items())) for inside in numbered.values()}
        if len(numbered) > 1 and len(kinds) == 1 and sorted(numbered) == list(range(len(numbered))):
            found[stack] = len(numbered)
    return found


def _renamed(specs: Mapping[str, TensorSpec], dropped: Dropped) -> dict[str, str | None]:
    """The new name of every tensor of the blocks; None for those that go."""
    left = [number for number in range(dropped.layers) if number not in dropped.gone]
    found: dict[str, str | None] = {}
    for name in specs:
        if name.startswith(f"{dropped.stack}."):
            number, _, rest = name.removeprefix(f"{dropped.stack}.").partition(".")
            if number.isascii() and number.isdigit():
                new = int(number)
                found[name] = None if new in dropped.gone else f"{dropped.stack}.{left.index(new)}.{rest}"
    return found


def _config(path: Path, dropped: Dropped) -> tuple[str | None, str]:
    """The text of config.json with the layers that are left, and a warning where it does not say how many there are."""
    file = SourceFile(path)
    try:
        config = parse(file.read(0, min(file.size, MOST_CONFIG)))
    except NotStrict:
        return None, f"{CONFIG} is not JSON that can be changed: it still says what the source was"
    finally:
        file.close()
    if not _shorten(config, dropped):
        return None, f"{CONFIG} says nowhere that there are {dropped.layers} layers: it is as it was"
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n", ""


def _shorten(config: Any, dropped: Dropped) -> bool:
    """Change number of layers and lists with an entry a layer, in nested settings too; say whether there was one."""
    if not isinstance(config, dict):
        return False
    found = False
    left = [number for number in range(dropped.layers) if number not in dropped.gone]
    other = "decoder" if "encoder" in dropped.stack else "encoder" if "decoder" in dropped.stack else None
    counts = (*COUNTS, *(key for key in SIDED_COUNTS if other is None or other not in key))
    for key in counts:
        if config.get(key) == dropped.layers and not isinstance(config[key], bool):
            config[key], found = len(left), True
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _shorten(value, dropped)
        elif found and isinstance(value, list) and len(value) == dropped.layers and not _is_of_model(key):
            config[key] = [value[number] for number in left]
    return found


def _is_of_model(key: str) -> bool:
    """Whether a list belongs to the whole model, however long it is."""
    return any(word in key for word in OF_THE_MODEL)
