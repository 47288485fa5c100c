"""Jobs beside each other: order, errors, how many at a time, and the folders of outputs. `do` is a stand-in."""

from __future__ import annotations

import threading

import pytest

import modelzip_cli.batch.run
from modelzip_cli.batch.jobs import Job
from modelzip_cli.batch.run import Result, output_folders, raise_for, run_jobs, summarize
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import BatchFailed, BrokenCheckpoint, CannotWrite, Stopped, UsageError
from modelzip_cli.report import Report, Side

MEET = 60  # seconds that threads wait for each other before their test fails; none waits that long


def report(job: Job) -> Report:
    side = Side(str(job.path), "torch", 10, 1, 1)
    return Report("quantize", "0", side, Side(str(job.output), "safetensors", 5, 1, 0), {}, {"ratio": 2.0}, ())


@pytest.fixture
def jobs_of(tmp_path, monkeypatch):
    """Jobs of files of so many bytes; those of up to 100 count as small."""
    monkeypatch.setattr(modelzip_cli.batch.run, "SMALL", 100)

    def make(*sizes: int) -> list[Job]:
        found = []
        for number, size in enumerate(sizes):
            path = tmp_path / f"{number}.pth"
            path.write_bytes(bytes(size))
            found.append(Job(path, tmp_path / f"{number}.out"))
        return found

    return make


class Counted:
    """A stand-in for `do` that knows how many of it run at once, and with how many threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[str] = set()
        self.most = 0
        self.threads: dict[str, int] = {}
        self.beside: dict[str, set[str]] = {}

    def __call__(self, job: Job, threads: int) -> Report:
        name = job.path.stem
        with self.lock:
            self.threads[name] = threads
            self.beside[name] = set()
            for other in self.running:
                self.beside[name].add(other)
                self.beside[other].add(name)
            self.running.add(name)
            self.most = max(self.most, len(self.running))
        threading.Event().wait(0.005)
        with self.lock:
            self.running.remove(name)
        return report(job)


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first(jobs_of):
    jobs, second_is_done = jobs_of(1, 1), threading.Event()
    ended = []

    def do(job, threads):
        if job is jobs[0]:
            assert second_is_done.wait(MEET)
        return report(job)

    def finished(result):
        ended.append(result.job)
        if result.job is jobs[1]:
            second_is_done.set()

    assert [result.job for result in run_jobs(jobs, do, 2, finished)] == jobs
    assert ended == jobs[::-1]


def test_small_files_run_beside_each_other_on_one_thread_each(jobs_of):
    meeting = threading.Barrier(4)

    def do(job, threads):
        assert threads == 1
        meeting.wait(MEET)
        return report(job)

    assert all(result.report for result in run_jobs(jobs_of(100, 1, 50, 0), do, 4))


def test_never_more_files_at_once_than_threads(jobs_of):
    do = Counted()
    assert len([*run_jobs(jobs_of(*[1] * 40), do, 3)]) == 40
    assert do.most <= 3


def test_a_large_file_has_all_threads_and_nothing_beside_it(jobs_of):
    do = Counted()
    sizes = [1, 1, 101, 1, 1, 1, 5000, 200, 1, 1]
    assert [result.job.path.stem for result in run_jobs(jobs_of(*sizes), do, 4)] == [str(n) for n in range(10)]
    for number, size in enumerate(sizes):
        assert do.threads[str(number)] == (4 if size > 100 else 1)
        assert size <= 100 or not do.beside[str(number)]


def test_with_one_thread_everything_runs_in_the_calling_one(jobs_of):
    def do(job, threads):
        assert threads == 1
        assert threading.current_thread() is threading.main_thread()
        return report(job)

    assert all(result.report for result in run_jobs(jobs_of(1, 101, 1), do, 1))


@pytest.mark.parametrize("what", ["directory", "missing", "standard input"])
def test_what_has_no_size_yet_is_not_taken_for_small(what, tmp_path):
    path = {"directory": tmp_path, "missing": tmp_path / "gone.pth", "standard input": STANDARD}[what]
    do = Counted()
    assert next(iter(run_jobs([Job(path, tmp_path / "out")], do, 4))).report
    assert [*do.threads.values()] == [4]


def test_a_list_of_jobs_is_not_held_in_the_pool_all_at_once(jobs_of):
    begun = []

    def do(job, threads):
        begun.append(job)
        return report(job)

    results = run_jobs(jobs_of(*[1] * 50), do, 2)
    next(results)
    results.close()
    assert len(begun) < 20


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenCheckpoint("1.pth: cut"), "1.pth: cut"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "out of memory; try fewer --jobs"),
        (KeyError("weight"), "this is a bug in modelzip: KeyError: 'weight' (--debug shows where)"),
        (RecursionError("too deep"), "this is a bug in modelzip: RecursionError: too deep (--debug shows where)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_one_file_is_its_result_and_the_others_are_done(error, message, threads, jobs_of):
    jobs = jobs_of(1, 1, 1, 101)

    def do(job, threads):
        if job is jobs[1]:
            raise error
        return report(job)

    results = [*run_jobs(jobs, do, threads)]
    assert [result.error is None for result in results] == [True, False, True, True]
    assert str(results[1].error).endswith(message)
    assert results[1].error.exit_code == 1
    assert "1.pth" in results[1].to_json()["error"]["message"]


def test_jobs_that_are_refused_or_skipped_are_never_done(jobs_of):
    first, second = jobs_of(1, 1)
    refused = Job(first.path, first.path, refused=UsageError("no name"))
    skipped = Job(second.path, second.output, skipped="output exists")

    def do(job, threads):
        raise AssertionError

    results = [*run_jobs([refused, skipped], do, 2)]
    assert [str(result.error or result.job.skipped) for result in results] == ["no name", "output exists"]
    assert summarize(results) | {"bytes_before": 0} == {
        "done": 0,
        "skipped": 1,
        "failed": 1,
        "bytes_before": 0,
        "bytes_after": 0,
    }


def test_a_stop_lets_what_is_running_end_and_begins_nothing_more(jobs_of):
    jobs = jobs_of(*[1] * 30)
    begun, ended = [], []

    def do(job, threads):
        begun.append(job)
        return report(job)

    results = run_jobs(jobs, do, 2, lambda result: ended.append(result.job))
    with pytest.raises(Stopped):
        for _ in results:
            raise Stopped(2)
    results.close()
    assert len(begun) == len(ended) < 30


# What a batch ends in


def test_one_input_ends_in_its_own_error_and_many_in_that_of_the_batch(jobs_of):
    good, bad = jobs_of(1, 1)
    failed, done = Result(bad, error=BrokenCheckpoint("cut")), Result(good, report=report(good))
    raise_for([done, done])
    with pytest.raises(BrokenCheckpoint):
        raise_for([failed])
    with pytest.raises(BatchFailed, match=r"^1 of 2 files failed$") as caught:
        raise_for([done, failed])
    assert caught.value.exit_code == 6
    assert caught.value.reported


def test_a_summary_counts_bytes_of_what_was_done(jobs_of):
    good, bad = jobs_of(1, 1)
    summary = summarize([Result(good, report=report(good)), Result(bad, error=BrokenCheckpoint("cut"))])
    assert summary == {"done": 1, "skipped": 0, "failed": 1, "bytes_before": 10, "bytes_after": 5}


# Folders


def test_folders_are_made_and_those_that_stay_empty_go_again(tmp_path):
    folders = [tmp_path / f"out/{name}" for name in ("full", "deep/empty", "deep/er")]
    with output_folders(folders):
        assert all(folder.is_dir() for folder in folders)
        (folders[0] / "x.out").write_bytes(b"x")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["full", "x.out"]


def test_folders_that_were_there_stay_though_empty(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folders([tmp_path / "out/new"]):
        pass
    assert [*tmp_path.rglob("*")] == [tmp_path / "out"]


def test_folders_go_again_after_an_error_and_after_a_stop(tmp_path):
    for error in (CannotWrite("no"), Stopped(2)):
        with pytest.raises(type(error)), output_folders([tmp_path / "out/new"]):
            raise error
        assert not [*tmp_path.iterdir()]


def test_no_folders_for_what_is_skipped_or_only_planned(tmp_path, modelzip, sample):
    source = sample("digits_mlp.pth")
    assert modelzip("quantize", source, "--output-dir", tmp_path / "out", "-n").exit_code == 0
    assert [*tmp_path.iterdir()] == [source]


def test_a_folder_that_cannot_be_made_takes_away_those_made_before_it(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    folders = [tmp_path / "new/deep", tmp_path / "file/deep"]
    with pytest.raises(CannotWrite, match="cannot make the folder"), output_folders(folders):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
