"""From the arguments of a command line to jobs: inputs, outputs, and every collision before the first write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from modelzip_cli.batch.journal import Journal
from modelzip_cli.containers.hf_directory import is_hugging_face
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import FileNotThere, ModelzipError, OutputExists, OutputIsSource, UsageError, inert
from modelzip_cli.output import SUFFIXES
from modelzip_cli.source import directory_message, is_compressed, open_source

BOM = b"\xef\xbb\xbf"  # what some editors begin a text with


@dataclass(frozen=True)
class Selection:
    """Which inputs a command line means, and where their outputs go."""

    paths: tuple[Path, ...]
    recursive: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    output: Path | None = None
    output_dir: Path | None = None
    force: bool = False
    skip_existing: bool = False
    dry_run: bool = False
    of_compressed: bool = False  # in directories, take what modelzip wrote, not what it did not write

    @property
    def journal_folder(self) -> Path | None:
        """Where the journal of a batch is kept: with the outputs, else in the first directory that is searched."""
        if self.output_dir is not None:
            return self.output_dir
        folders = [path for path in self.paths if self.recursive and path != STANDARD and path.is_dir()]
        for folder in folders[:1]:
            return folder.absolute().parent if is_hugging_face(folder) else folder  # a model is a source: not touched
        return None


@dataclass(frozen=True)
class Item:
    """One input; `folder` is the directory argument it was found under, None for a file that was named itself."""

    path: Path
    folder: Path | None = None


@dataclass(frozen=True)
class Job:
    """One checkpoint to do: `refused` is the reason why it cannot be done, `skipped` why it need not be."""

    path: Path
    output: Path
    refused: ModelzipError | None = None
    skipped: str | None = None


def find_inputs(selection: Selection) -> list[Item]:
    """The files that the arguments mean, in order, each once.

    With `recursive`, directories are walked in name order without following links to directories; a Hugging Face
    directory counts as one model and is not entered. Raises UsageError for a directory without it, FileNotThere.
    """
    found: dict[Path, Item] = {}
    for path in selection.paths:
        if path == STANDARD:
            items = [Item(path)]
        elif path.is_dir() and not (is_hugging_face(path) and not selection.recursive):
            if not selection.recursive:
                raise UsageError(directory_message(path))
            items = [item for item in _walk(path) if _is_wanted(item, selection)]
        else:
            if not path.exists():
                from modelzip_cli.containers.source_file import SourceFile

                SourceFile(path)  # raises the error that names the closest file
                raise FileNotThere(f"{inert(str(path))}: no such file")
            items = [Item(path)]
        for item in items:
            found.setdefault(Path(os.path.realpath(item.path)), item)
    return list(found.values())


def read_filelist(path: Path) -> tuple[Path, ...]:
    """The paths in a file, one a line; `-` reads standard input. Raises UsageError when it cannot be read."""
    try:
        raw = sys.stdin.buffer.read() if path == STANDARD else path.read_bytes()
    except OSError as error:
        raise UsageError(f"--filelist {inert(str(path))}: cannot be read: {error.strerror}") from None
    lines = raw.removeprefix(BOM).splitlines()
    return tuple(Path(os.fsdecode(line)) for line in lines if line.strip())


def _walk(folder: Path) -> Iterator[Item]:
    if is_hugging_face(folder):
        yield Item(folder, folder)
        return
    for root, folders, files in os.walk(folder):
        folders.sort()
        models = [name for name in folders if is_hugging_face(Path(root, name))]
        for name in models:
            folders.remove(name)
            yield Item(Path(root, name), folder)
        for name in sorted(files):
            path = Path(root, name)
            if path.suffix in (*SUFFIXES, ".pt2") or name.endswith(".pth.tar"):
                yield Item(path, folder)


def _is_wanted(item: Item, selection: Selection) -> bool:
    assert item.folder is not None
    relative = str(item.path.relative_to(item.folder))
    names = (relative, item.path.name)
    if any(fnmatchcase(name, pattern) for name in names for pattern in selection.exclude):
        return False
    return not selection.include or any(fnmatchcase(name, pattern) for name in names for pattern in selection.include)


def plan_jobs(
    items: Sequence[Item], selection: Selection, name_of: Callable[[Path], str], journal: Journal | None = None
) -> list[Job]:
    """Give every input its output, and find every collision before the first write.

    `name_of` derives an output's file name from its source; what the `journal` has as done is not done again. Raises
    UsageError and its kin for two inputs with one output, for an output that is one of the inputs, and for outputs
    that exist.
    """
    if selection.output is not None and len(items) != 1:
        raise UsageError(f"-o names one output, but there are {len(items)} inputs; use --output-dir")
    if any(item.path == STANDARD for item in items) and (len(items) != 1 or selection.output_dir is not None):
        raise UsageError("standard input (-) is one input with one output: give -o, or nothing for standard output")
    jobs = [_job(item, selection, name_of, journal) for item in items]
    inputs = {place for job in jobs if not job.skipped for place in _places(job.path)}
    outputs: dict[str, Path] = {}
    existing = []
    for number, job in enumerate(jobs):
        if job.refused or job.skipped or job.output == STANDARD:
            continue
        real, shown = os.path.realpath(job.output), inert(str(job.output))
        if not inputs.isdisjoint(_places(job.output)):
            raise OutputIsSource(f"{shown}: the output would be one of the inputs; choose another -o or --output-dir")
        if real in outputs:
            raise UsageError(
                f"{shown} would be the output of both {inert(str(outputs[real]))} and {inert(str(job.path))}; "
                "do them in two runs with different --output-dir"
            )
        outputs[real] = job.path
        if journal is not None and not selection.force and journal.is_done(job.path, job.output):
            jobs[number] = replace(job, skipped="done before")
            continue
        if os.path.lexists(job.output) and not selection.force and not selection.dry_run:
            existing.append(shown)
    if existing:
        what = (
            f"{existing[0]} exists" if len(existing) == 1 else f"{len(existing)} outputs exist, such as {existing[0]}"
        )
        raise OutputExists(f"{what}; -f replaces, --skip-existing leaves what is there")
    return jobs


def _job(item: Item, selection: Selection, name_of: Callable[[Path], str], journal: Journal | None) -> Job:
    if item.folder is not None and (reason := _not_meant(item.path, selection, journal)):
        return Job(item.path, item.path, skipped=reason)
    if item.path == STANDARD:
        return Job(STANDARD, selection.output or STANDARD)
    try:
        name = "" if selection.output == STANDARD else name_of(item.path)
    except ModelzipError as error:
        return Job(item.path, item.path, refused=error)
    if selection.output is not None:
        output = selection.output
    elif selection.output_dir is None:
        output = _beside(item.path, name)
    else:
        inside = item.path.parent.relative_to(item.folder) if item.folder not in (None, item.path) else Path()
        output = selection.output_dir / inside / name
    skipped = "output exists" if selection.skip_existing and output != STANDARD and os.path.lexists(output) else None
    return Job(item.path, output, skipped=skipped)


def _not_meant(path: Path, selection: Selection, journal: Journal | None) -> str | None:
    """Why a file that was found in a directory is left alone, None if it is not."""
    if not selection.of_compressed:
        if is_compressed(path):
            return "already compressed by modelzip"
        return "an output of a run before" if journal is not None and journal.made(path) else None
    try:
        source = open_source(path)
    except ModelzipError:
        return None  # doing it will say what is wrong: it may be a damaged one
    source.close()
    return None if source.compressed else "not compressed by modelzip"


def _places(path: Path) -> list[object]:
    """What tells that two paths are one file: the path without links, and what is there, whatever it is called."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return [os.path.realpath(path)]
    return [os.path.realpath(path), (status.st_dev, status.st_ino)]


def _beside(path: Path, name: str) -> Path:
    """Where an output called `name` lies without --output-dir; `.` and `..` have no name of their own."""
    return (path if path.name not in ("", "..") else Path(os.path.abspath(path))).with_name(name)
