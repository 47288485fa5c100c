"""What a checkpoint is, from its header alone: no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.containers.tree import Named, Tree, Weights
from modelzip_cli.errors import inert
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.report import SCHEMA_VERSION
from modelzip_cli.source import Checkpoint, files_of, open_source

if TYPE_CHECKING:
    from modelzip_cli.predict import Prediction
    from modelzip_cli.survey import TensorSurvey


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor; `stored_bytes` and `scheme` differ from the plain case in a compressed file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    stored_bytes: int
    scheme: str | None
    tied_to: str | None
    weights: bool  # False for a tensor beside the weights, such as optimizer state


@dataclass(frozen=True)
class Inspection:
    """A checkpoint as `modelzip inspect` shows it. `extras` describes the values beside the weights."""

    path: str
    container: str
    bytes: int
    compressed: bool
    state_dict: str
    tensors: tuple[InspectedTensor, ...]
    extras: Mapping[str, str]
    metadata: Mapping[str, str]
    manifest: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    statistics: Mapping[str, TensorSurvey] | None = None  # of the float tensors, when asked for
    predictions: tuple[Prediction, ...] = ()  # none of a compressed file, whose losses are in its weights already

    @property
    def not_weights(self) -> int:
        """Bytes of the file that are not the state dict: header, optimizer state, whatever else is there.

        0 where tensors that overlap count for more bytes than the file has.
        """
        return max(0, self.bytes - sum(tensor.stored_bytes for tensor in self.tensors if tensor.weights))

    @property
    def parameters(self) -> int:
        """Weights, those of a tie once."""
        return sum(_size(tensor.shape) for tensor in self.tensors if tensor.weights and not tensor.tied_to)

    def bits_of(self, scheme: str) -> Mapping[str, float]:
        """Bits a weight that the first prediction of `scheme` gives each tensor it treats; none where there is none."""
        return next((one.bits for one in self.predictions if one.scheme == scheme), {})

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Tensors, parameters and bytes of the weights by dtype; the largest first."""
        found: dict[str, dict[str, int]] = {}
        for tensor in self.tensors:
            if tensor.weights and not tensor.tied_to:
                entry = found.setdefault(tensor.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
                entry["tensors"] += 1
                entry["parameters"] += _size(tensor.shape)
                entry["bytes"] += tensor.bytes
        return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON values; keys as in CLI.md."""
        rows = [{**vars(tensor), "shape": [*tensor.shape]} for tensor in self.tensors]
        surveyed: dict[str, Any] = {}
        if self.statistics is not None:
            for row in rows:
                figures = self.statistics.get(row["name"])
                bits = {f"{scheme}_bits": self.bits_of(scheme).get(row["name"]) for scheme in ("lossless", "ecq")}
                row["statistics"] = {**figures.to_json(), **bits} if figures else None
            share = round(self.not_weights / self.bytes, 6)
            surveyed = {
                "predictions": [one.to_json() for one in self.predictions],
                "not_weights": {"bytes": self.not_weights, "share": share},
            }
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "inspect",
            "source": {
                "path": self.path,
                "container": self.container,
                "compressed": self.compressed,
                "bytes": self.bytes,
                "tensors": sum(tensor.weights for tensor in self.tensors),
                "parameters": self.parameters,
                "state_dict": self.state_dict or None,
            },
            "dtypes": self.dtypes(),
            "tensors": rows,
            "extras": dict(self.extras),
            "metadata": dict(self.metadata),
            "manifest": self.manifest,
            "warnings": [*self.warnings],
            **surveyed,
        }


def inspect_file(path: Path, *, key: str | None = None, executor: Executor | None = None) -> Inspection:
    """Describe the checkpoint at `path`; with an `executor`, also read and survey its weights.

    Raises what opening and reading raise.
    """
    source = open_source(path, key=key, keep_extras=True)
    try:
        found = _describe(source)
        if executor is None:
            return found
        from modelzip_cli.predict import predict
        from modelzip_cli.survey import survey

        surveyed = survey(source, executor)
        predictions: list[Prediction] = []
        if not source.compressed:
            with _as_quantize_sees(path, key, source) as bare:
                predictions = predict(bare, surveyed, executor, key=key)
        source.finish()
        return replace(found, statistics=surveyed, predictions=tuple(predictions))
    finally:
        source.close()


@contextmanager
def _as_quantize_sees(path: Path, key: str | None, source: Checkpoint) -> Iterator[Checkpoint]:
    """The checkpoint without the tensors beside its weights; as it is where it cannot be opened once more."""
    if path == STANDARD:
        yield source
        return
    with closing(open_source(path, key=key)) as bare:
        yield bare


def _describe(source: Checkpoint) -> Inspection:
    native = [file for file in files_of(source) if isinstance(file, NativeSource)]
    records = {name: record for file in native for name, record in file.records.items()}
    ties = source.outer.ties if source.outer else {}
    tensors = []
    for name, spec in (*source.specs.items(), *source.beside.items()):
        record = records.get(ties.get(name, name))
        stored = sum(part.spec.bytes for part in record.parts) if record else spec.bytes
        scheme = str(record.scheme) if record and record.scheme else None
        tied_to = ties.get(name)
        tensors.append(
            InspectedTensor(
                name,
                spec.shape,
                spec.dtype.id,
                spec.bytes,
                0 if tied_to else stored,
                scheme,
                tied_to,
                name in source.specs,
            )
        )
    return Inspection(
        inert(str(source.file.path)),
        source.container,
        source.file.size,
        source.compressed,
        getattr(source, "state_dict", ""),
        tuple(tensors),
        _extras(source.outer.tree) if source.outer else {},
        dict(source.metadata),
        _manifest(source, native),
        source.warnings,
    )


def _manifest(source: Checkpoint, native: Sequence[NativeSource]) -> dict[str, Any] | None:
    """What the manifest says of the whole file; of a directory, the first one's, and all sources counted together."""
    if not native:
        return None
    keys = ("format_version", "modelzip", "recipe", "source", "dropped")
    manifest = {key: native[0].manifest[key] for key in keys}
    if len(native) > 1 or native[0] is not source:
        names = [str(file.manifest["source"]["name"]) for file in native]
        name = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        size = sum(file.manifest["source"]["bytes"] for file in native)
        manifest["source"] = {**manifest["source"], "name": name, "bytes": size}
        manifest["dropped"] = [name for file in native for name in file.manifest["dropped"]]
    return manifest


def _extras(tree: Tree, path: tuple[str, ...] = ()) -> dict[str, str]:
    """One line for each value beside the weights, by its path: what it is, or its value when that is short."""
    if isinstance(tree, Weights):
        return {str(key): _brief(value) for _, key, value in tree.others if key != "__metadata__"}
    if not isinstance(tree, dict):
        return {".".join(path): _brief(tree)}
    found: dict[str, str] = {}
    for key, value in tree.items():
        inside = (*path, str(key))
        holds_weights = isinstance(value, Weights) or (isinstance(value, dict) and _holds_weights(value))
        found |= _extras(value, inside) if holds_weights else {".".join(inside): _brief(value)}
    return found


def _holds_weights(tree: dict[Any, Any]) -> bool:
    return any(
        isinstance(value, Weights) or (isinstance(value, dict) and _holds_weights(value)) for value in tree.values()
    )


def _brief(value: Tree) -> str:
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value) if len(repr(value)) <= 60 else f"{type(value).__name__}, {len(repr(value)):,} characters"
    if isinstance(value, dict):
        tensors = _count_tensors(value)
        return f"dict of {len(value):,}" + (f", {tensors:,} tensors inside" if tensors else "")
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{type(value).__name__} of {len(value):,}"
    if isinstance(value, Named):
        return "tensor"
    return type(value).__name__


def _count_tensors(value: Tree) -> int:
    if isinstance(value, Named):
        return 1
    if isinstance(value, dict):
        return sum(map(_count_tensors, value.values()))
    return sum(map(_count_tensors, value)) if isinstance(value, (list, tuple)) else 0


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
