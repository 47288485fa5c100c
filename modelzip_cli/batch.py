"""One or many checkpoints: which files, where outputs go, and one failing file that does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modelzip_cli.containers.atomic import STANDARD
from modelzip_cli.containers.hf_directory import is_hugging_face
from modelzip_cli.errors import (
    BatchFailed,
    FileNotThere,
    ModelzipError,
    OutputExists,
    OutputIsSource,
    UsageError,
    inert,
)
from modelzip_cli.output import SUFFIXES, TORCH_SUFFIXES
from modelzip_cli.recipe import Recipe
from modelzip_cli.report import SCHEMA_VERSION, Report
from modelzip_cli.source import directory_message


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


@dataclass(frozen=True)
class Result:
    """What became of one job."""

    job: Job
    report: Report | None = None
    error: ModelzipError | None = None

    def to_json(self) -> dict[str, Any]:
        """A report, or what stands in its place."""
        if self.report is not None:
            return self.report.to_json()
        source = {"path": inert(str(self.job.path))}
        if self.error is not None:
            return {"schema_version": SCHEMA_VERSION, "source": source, "error": describe_error(self.error)}
        return {"schema_version": SCHEMA_VERSION, "source": source, "skipped": self.job.skipped}


def describe_error(error: ModelzipError) -> dict[str, Any]:
    """An error as JSON reports show it."""
    return {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}


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


def plan_jobs(items: Sequence[Item], selection: Selection, name_of: Callable[[Path], str]) -> list[Job]:
    """Give every input its output, and find every collision before the first write.

    `name_of` derives an output's file name from its source. Raises UsageError and its kin for two inputs with one
    output, for an output that is one of the inputs, and for outputs that exist.
    """
    if selection.output is not None and len(items) != 1:
        raise UsageError(f"-o names one output, but there are {len(items)} inputs; use --output-dir")
    if any(item.path == STANDARD for item in items) and (len(items) != 1 or selection.output_dir is not None):
        raise UsageError("standard input (-) is one input with one output: give -o, or nothing for standard output")
    jobs = [_job(item, selection, name_of) for item in items]
    inputs = {os.path.realpath(item.path): item.path for item in items}
    outputs: dict[str, Path] = {}
    existing = []
    for job in jobs:
        if job.refused or job.skipped or job.output == STANDARD:
            continue
        real, shown = os.path.realpath(job.output), inert(str(job.output))
        if real in inputs:
            raise OutputIsSource(f"{shown}: the output would be one of the inputs; choose another -o or --output-dir")
        if real in outputs:
            raise UsageError(
                f"{shown} would be the output of both {inert(str(outputs[real]))} and {inert(str(job.path))}; "
                "do them in two runs with different --output-dir"
            )
        outputs[real] = job.path
        if os.path.lexists(job.output) and not selection.force and not selection.dry_run:
            existing.append(shown)
    if existing:
        what = (
            f"{existing[0]} exists" if len(existing) == 1 else f"{len(existing)} outputs exist, such as {existing[0]}"
        )
        raise OutputExists(f"{what}; -f replaces, --skip-existing leaves what is there")
    return jobs


def _job(item: Item, selection: Selection, name_of: Callable[[Path], str]) -> Job:
    if item.folder is not None and is_modelzip_output(item.path):
        return Job(item.path, item.path, skipped="already compressed by modelzip")
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


def _beside(path: Path, name: str) -> Path:
    """Where an output called `name` lies without --output-dir; `.` and `..` have no name of their own."""
    return (path if path.name not in ("", "..") else Path(os.path.abspath(path))).with_name(name)


def is_modelzip_output(path: Path) -> bool:
    """Say whether a file found in a directory is one of ours, which a second run must not compress again."""
    from modelzip_cli.source import open_source

    try:
        source = open_source(path)
    except ModelzipError:
        return False  # doing it will say what is wrong
    source.close()
    return source.compressed


def run_jobs(jobs: Sequence[Job], do: Callable[[Job], Report]) -> Iterator[Result]:
    """Do the jobs in order; an error of one is its result, not the end."""
    for job in jobs:
        if job.skipped:
            yield Result(job)
            continue
        try:
            if job.refused:
                raise job.refused
            yield Result(job, report=do(job))
        except ModelzipError as error:
            yield Result(job, error=error)
        except BrokenPipeError:  # whoever reads standard output went away: nobody is left to tell
            raise
        except OSError as error:
            yield Result(job, error=ModelzipError(f"{inert(str(job.path))}: {error.strerror or error}"))


def summarize(results: Sequence[Result]) -> dict[str, Any]:
    """The closing figures of a batch."""
    done = [result.report for result in results if result.report is not None]
    return {
        "done": len(done),
        "skipped": sum(result.job.skipped is not None for result in results),
        "failed": sum(result.error is not None for result in results),
        "bytes_before": sum(report.source.bytes for report in done),
        "bytes_after": sum(report.output.bytes for report in done if report.output),
    }


def raise_for(results: Sequence[Result], *, reported: bool = False) -> None:
    """Raise the error of a single job, or BatchFailed when some of many failed.

    `reported`: nothing more may be said on standard output, where the error stands or the weights go.
    """
    failed = [result.error for result in results if result.error is not None]
    if failed and len(results) == 1:
        failed[0].reported = failed[0].reported or reported
        raise failed[0]
    if failed:
        raise BatchFailed(f"{len(failed)} of {len(results)} files failed", reported=True)


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
