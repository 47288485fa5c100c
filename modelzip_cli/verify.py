"""Check what a compressed file claims: its checksums, and that it is what its source and recipe give."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from modelzip_cli.compress import run
from modelzip_cli.depth import open_for
from modelzip_cli.errors import UsageError, inert
from modelzip_cli.layouts.native_source import NativeSource
from modelzip_cli.plan import plan_compression
from modelzip_cli.recipe import Recipe
from modelzip_cli.schemes.ecq import Ecq
from modelzip_cli.source import Checkpoint, files_of, open_source
from modelzip_cli.tensors import TensorSpec


@dataclass(frozen=True)
class Verification:
    """How many tensors were checked, and (tensor, problem) for each that is wrong."""

    path: str
    checked: int
    bad: tuple[tuple[str, str], ...]
    compressed: bool
    against: str | None = None


class NullSink:
    """Takes the arrays of a replayed run and keeps nothing: the checksums are what is compared."""

    def begin(self, spec: TensorSpec) -> None: ...

    def write(self, name: str, offset: int, data: memoryview, crc: int) -> None: ...

    def resize(self, name: str, size: int) -> None: ...


def verify_file(path: Path, *, against: Path | None, jobs: int, executor: Executor) -> Verification:
    """Read all of the file at `path` and check it; with `against`, derive it again from that source and compare.

    A file that modelzip did not write is checked as far as its container goes: structure, and the checksums of a torch
    file. Raises UsageError when `against` is asked for such a file; BrokenCheckpoint when the file cannot be read.
    """
    source = open_source(path)
    try:
        native = [file for file in files_of(source) if isinstance(file, NativeSource)]
        if not source.compressed and against is not None:
            raise UsageError(f"{source.file.label}: not compressed by modelzip, so there is no recipe to replay")
        found = [item for file in native for item in file.verify()]
        bad = [(name, problem) for name, _, problems in found for problem in problems]
        checked = sum(len(file.records) for file in native)
        for file in files_of(source):
            if not isinstance(file, NativeSource):
                checked += _read_all(file, executor)
        if against is not None and not bad:
            bad = _replay(source, native, against, jobs, executor)
        return _result(source, checked, bad, against)
    finally:
        source.close()


def _read_all(source: Checkpoint, executor: Executor) -> int:
    """Read every tensor, which checks what checksums the container has; return how many there are."""

    def read(piece: tuple[str, int, int]) -> None:
        source.read(*piece)

    pieces = [(name, start, stop) for name, spec in source.specs.items() for start, stop in spec.unit_slabs()]
    for _ in executor.map(read, pieces):
        pass
    source.finish()
    return len(source.specs)


def _result(source: Checkpoint, checked: int, bad: list[tuple[str, str]], against: Path | None) -> Verification:
    shown = None if against is None else inert(str(against))
    return Verification(inert(str(source.file.path)), checked, tuple(bad), source.compressed, shown)


def _replay(
    compressed: Checkpoint, native: list[NativeSource], against: Path, jobs: int, executor: Executor
) -> list[tuple[str, str]]:
    """Run the recipe of the file again and compare every manifest entry: checksums and figures."""
    if any("aid" in file.manifest for file in native):
        raise UsageError(
            f"{compressed.file.label}: was made with the help of a model on data, which {inert(str(against))} alone "
            "does not give again; its checksums are right"
        )
    recipe = Recipe.from_json(native[0].manifest["recipe"], native[0].label)
    source = open_for(against, recipe)
    try:
        claimed = [(file.manifest["source"]["sha256"], file.manifest["source"]["bytes"]) for file in native]
        whole, in_files = ([(file.sha256, file.file.size) for file in files] for files in ([source], files_of(source)))
        if claimed not in (whole, in_files):  # a directory may have become one file, or a file for each of its own
            return [("(source)", f"{source.file.label} is not what {compressed.file.label} says it was made from")]
        plan = plan_compression(
            source,
            recipe,
            command="verify",
            container=native[0].container,
            executor=executor,
            step=_step(native, recipe, source),
        )
        outcome = run(plan, source, NullSink(), jobs=jobs, executor=executor)
        source.finish()
        derived = {record.spec.name: record.to_json() for record in outcome.records(plan)}
    finally:
        source.close()
    stored = {name: entry for file in native for name, entry in file.manifest["tensors"].items()}
    return [
        (name, "differs from what its source and recipe give")
        for name in dict.fromkeys((*stored, *derived))
        if stored.get(name) != derived.get(name)
    ]


def _step(native: list[NativeSource], recipe: Recipe, source: Checkpoint) -> float | None:
    """The step that a goal was met with, from the manifest: it is part of what has to give the same bytes."""
    ties = source.outer.ties if source.outer else {}
    for name, decision in recipe.decide(source.specs, ties).items():
        if isinstance(decision.scheme, Ecq) and decision.scheme.step is None:
            for file in native:
                record = file.records.get(name)
                if record is not None and isinstance(record.scheme, Ecq):
                    return record.scheme.step
    return None
