"""Do jobs, several small ones at a time; what became of each is its result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelzip_cli.batch.jobs import Job
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import BatchFailed, Bug, CannotWrite, ModelzipError, inert
from modelzip_cli.report import SCHEMA_VERSION, Report

SMALL = 16 << 20  # bytes of a file that is done on one thread, beside others like it


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


def run_jobs(
    jobs: Sequence[Job],
    do: Callable[[Job, int], Report],
    threads: int,
    finished: Callable[[Result], None] = lambda result: None,
    *,
    one_by_one: bool = False,
) -> Iterator[Result]:
    """Do the jobs and yield results in their order; an error of one is its result, not the end.

    `finished` is told of each as soon as it is, in the thread that did it.

    `do` is given a job and how many threads it may use: all of `threads` for a large file, one for a small one, which
    has others beside it, unless they are done `one_by_one`. So memory is bounded as for a single file.
    """

    def attempt(job: Job, threads: int) -> Result:
        result = _attempt(job, do, threads)
        finished(result)
        return result

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="modelzip-job")
    try:
        for job in jobs:
            if threads > 1 and not one_by_one and _is_small(job):
                waiting.append(pool.submit(attempt, job, 1))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
                continue
            while waiting:
                yield waiting.popleft().result()
            yield attempt(job, threads)
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_small(job: Job) -> bool:
    try:
        return job.path != STANDARD and job.path.is_file() and job.path.stat().st_size <= SMALL
    except OSError:
        return False  # doing it will say what is wrong


def _attempt(job: Job, do: Callable[[Job, int], Report], threads: int) -> Result:
    if job.skipped:
        return Result(job)
    try:
        if job.refused:
            raise job.refused
        return Result(job, report=do(job, threads))
    except ModelzipError as error:
        return Result(job, error=error)
    except BrokenPipeError:  # whoever reads standard output went away: nobody is left to tell
        raise
    except OSError as error:
        return Result(job, error=ModelzipError(f"{inert(str(job.path))}: {error.strerror or error}"))
    except MemoryError:
        return Result(job, error=ModelzipError(f"{inert(str(job.path))}: out of memory; try fewer --jobs"))
    except Exception as error:  # a mistake of ours: it must not look like advice, nor stop the other files
        what = f"{type(error).__name__}: {inert(str(error), longest=200)}"
        bug = Bug(f"{inert(str(job.path))}: this is a bug in modelzip: {what} (--debug shows where)")
        bug.__cause__ = error
        return Result(job, error=bug)


@contextmanager
def output_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Make the folders that are missing; take away again those in which nothing came to be."""
    made: list[Path] = []
    try:
        for folder in folders:
            made += _make(folder)
        yield
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # not empty: there is an output in it
                folder.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make `folder` and what is missing above it; return what was made, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{inert(str(folder))}: cannot make the folder: {error.strerror}") from error
    return missing


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
