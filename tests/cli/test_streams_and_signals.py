"""The program among others: signals, closed and full streams, limits, links, and runs that race each other."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import plain_pth, plain_safetensors
from tests.conftest import GIVE_UP, PROGRAM
from tests.hostile.makers import call, entry, mapping, read_all, safetensors_of, text, torch_file

TEMPORARIES = ".modelzip-*"
WRITES_AT_ONCE = ("--coder", "bitpack")  # coded, zeros are nothing to write


@pytest.fixture
def source(tmp_path) -> Path:
    return plain_safetensors(tmp_path / "model.safetensors")


@pytest.fixture
def large(tmp_path) -> Path:
    """Zeros that take a second to compress, most of them a hole in the file: 192 MB of float32 in 96 tensors."""
    path, size = tmp_path / "large.safetensors", 2 << 20
    header = {f"w{n}": entry([1024, size // 4096], n * size, (n + 1) * size) for n in range(96)}
    with path.open("wb") as file:
        file.write(safetensors_of(header))
        file.truncate(file.tell() + 96 * size)
    return path


@pytest.fixture
def start(tmp_path, environment) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start the program and go on; what still runs at the end of the test is killed."""
    running: list[subprocess.Popen] = []

    def begin(*arguments: object, **options: object) -> subprocess.Popen:
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        settings |= {"cwd": tmp_path, "env": environment | {"MODELZIP_KERNELS": "numpy"}}
        running.append(subprocess.Popen([PROGRAM, *map(str, arguments)], **settings))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def shell(tmp_path, environment) -> Callable[..., subprocess.CompletedProcess]:
    """Run a line of shell in which `$0` is the program."""

    def run(line: str, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", "-c", line, PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
            timeout=GIVE_UP,
        )

    return run


def wait_until_it_writes(process: subprocess.Popen, folder: Path) -> None:
    """Return as soon as the temporary of the output holds something."""
    give_up = time.monotonic() + GIVE_UP
    while not any(path.stat().st_size for path in folder.glob(TEMPORARIES)):
        assert process.poll() is None, f"ended before it wrote: {process.communicate()}"
        assert time.monotonic() < give_up
        time.sleep(0.002)


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_signal_ends_a_run_and_leaves_nothing(number, code, suffix, large, start, tmp_path):
    process = start("quantize", large, *WRITES_AT_ONCE, "-o", f"out{suffix}")
    wait_until_it_writes(process, tmp_path)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=GIVE_UP)
    assert process.returncode == code
    assert stdout == b""
    assert stderr.decode().count("\n") == 1
    assert signal.Signals(number).name in stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == [large.name]


def test_a_signal_leaves_an_output_that_was_to_be_replaced(large, start, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")
    process = start("quantize", large, *WRITES_AT_ONCE, "-o", output, "-f")
    wait_until_it_writes(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GIVE_UP)
    assert process.returncode == 143
    assert output.read_bytes() == b"precious"
    assert not [*tmp_path.glob(TEMPORARIES)]


def test_a_second_signal_ends_it_at_once_and_leaves_nothing(large, start, tmp_path):
    process = start("quantize", large, *WRITES_AT_ONCE, "-o", "out.safetensors")
    wait_until_it_writes(process, tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=GIVE_UP)
    assert process.returncode in (130, 143)  # two signals may arrive as one wakes the other
    assert [path.name for path in tmp_path.iterdir()] == [large.name]


def test_under_nohup_a_hangup_changes_nothing(large, start, tmp_path):
    process = start(
        "quantize",
        large,
        "-o",
        "out.safetensors",
        "-q",
        *WRITES_AT_ONCE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_until_it_writes(process, tmp_path)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=GIVE_UP)
    assert process.returncode == 0
    assert (tmp_path / "out.safetensors").exists()


def test_a_killed_run_leaves_a_temporary_that_the_next_run_removes(large, source, start, installed, tmp_path):
    process = start("quantize", large, *WRITES_AT_ONCE, "-o", "out.safetensors")
    wait_until_it_writes(process, tmp_path)
    process.kill()
    process.communicate(timeout=GIVE_UP)
    assert len([*tmp_path.glob(TEMPORARIES)]) == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert installed("quantize", source, "-o", "out.safetensors").exit_code == 0
    assert not [*tmp_path.glob(TEMPORARIES)]


# Streams


@pytest.mark.parametrize(
    ("name", "form"), [("inspect", "plain"), ("inspect", "json"), ("inspect", "md"), ("quantize", "plain")]
)
def test_a_reader_that_goes_away_is_no_error(name, form, source, start, tmp_path):
    process = start(name, source, "--format", form)
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=GIVE_UP)
    assert (process.returncode, stderr) == (0, b"")
    if name == "quantize":
        read_all(tmp_path / "model.int8.safetensors")


def test_head_of_a_long_report_is_a_success(source, shell):
    run = shell('{ "$0" inspect "$1" -v --json; echo "code $?" >&2; } | head -c 1', source)
    assert (run.stdout, run.stderr) == ("{", "code 0\n")


ALL_CLOSED = '"$0" "$@" <&- >&- 2>&-'


@pytest.mark.parametrize(
    ("line", "suffix"),
    [
        ('"$0" "$@" >&-', ".safetensors"),
        ('"$0" "$@" <&-', ".pth"),
        ('"$0" "$@" 2>&-', ".safetensors"),
        (ALL_CLOSED, ".safetensors"),
        (ALL_CLOSED, ".pth"),
    ],
)
def test_closed_streams_do_not_get_into_the_output(line, suffix, source, shell, tmp_path):
    run = shell(line, "quantize", source, "-o", f"out{suffix}")
    assert (run.returncode, run.stderr) == (0, "")
    assert set(read_all(tmp_path / f"out{suffix}").tensors) == set(read_all(source).tensors)


def test_an_error_with_all_streams_closed_still_has_its_code(shell):
    assert shell(ALL_CLOSED, "inspect", "nothing.pth").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_full_disk_under_the_report_is_an_error_and_the_output_is_whole(form, source, shell, tmp_path):
    run = shell('"$0" "$@" >/dev/full', "quantize", source, "--format", form)
    assert run.returncode == 1
    assert run.stderr == "modelzip: error: cannot write to standard output: No space left on device\n"
    read_all(tmp_path / "model.int8.safetensors")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_messages_does_not_change_the_code(shell):
    assert shell('"$0" inspect nothing.pth 2>/dev/full').returncode == 2


# Outputs


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_limit_on_file_sizes_is_one_error_and_no_output(suffix, source, shell, tmp_path):
    run = shell('ulimit -f 8; "$0" "$@"', "quantize", source, "-o", f"out{suffix}")
    assert run.returncode == 1
    assert run.stderr == f"modelzip: error: out{suffix}: cannot write: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write into any folder")
def test_a_folder_that_may_not_be_written_is_one_error(source, modelzip, tmp_path):
    (tmp_path / "folder").mkdir(mode=0o500)
    run = modelzip("quantize", source, "-o", "folder/out.safetensors")
    assert run.exit_code == 1
    assert run.stderr == "modelzip: error: folder/out.safetensors: cannot write: Permission denied\n"


@pytest.mark.parametrize("output", ["file/out.safetensors", "nowhere/out.safetensors", "x" * 260 + ".safetensors"])
def test_an_output_that_cannot_be_is_one_error(output, source, modelzip, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    run = modelzip("quantize", source, "-o", output)
    assert run.exit_code in (1, 2)
    assert run.stderr.startswith("modelzip: error: ")
    assert run.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", source.name]


@pytest.mark.parametrize("what", ["directory", "pipe"])
def test_an_output_that_is_no_file_is_refused_even_with_force(what, source, modelzip, tmp_path):
    output = tmp_path / "out.safetensors"
    output.mkdir() if what == "directory" else os.mkfifo(output)
    run = modelzip("quantize", source, "-o", output, "-f")
    assert run.exit_code == 2
    assert run.stderr == f"modelzip: error: {output} is not a regular file\n"


def test_of_three_runs_for_one_output_one_wins(source, start, tmp_path):
    runs = [start("quantize", source, "-o", "out.safetensors") for _ in range(3)]
    errors = [run.communicate(timeout=GIVE_UP)[1].decode() for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2, 2]
    assert all("-f replaces" in error for run, error in zip(runs, errors, strict=True) if run.returncode)
    read_all(tmp_path / "out.safetensors")
    assert not [*tmp_path.glob(TEMPORARIES)]


def test_of_three_runs_with_force_each_leaves_a_whole_output(source, start, tmp_path):
    runs = [start("quantize", source, "-o", "out.safetensors", "-f") for _ in range(3)]
    for run in runs:
        run.communicate(timeout=GIVE_UP)
    assert [run.returncode for run in runs] == [0, 0, 0]
    read_all(tmp_path / "out.safetensors")
    assert not [*tmp_path.glob(TEMPORARIES)]


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600)])
def test_the_mode_of_an_output_is_that_of_the_umask(umask, mode, source, shell, tmp_path):
    assert shell(f'umask {umask}; "$0" "$@"', "quantize", source, "-o", "out.pth").returncode == 0
    assert stat.S_IMODE((tmp_path / "out.pth").stat().st_mode) == mode


def test_a_link_as_output_keeps_pointing_where_it_did(source, modelzip, tmp_path):
    real = tmp_path / "folder" / "real.safetensors"
    real.parent.mkdir()
    real.write_bytes(b"old")
    (tmp_path / "out.safetensors").symlink_to(real)
    assert modelzip("quantize", source, "-o", "out.safetensors").exit_code == 2
    assert real.read_bytes() == b"old"
    assert modelzip("quantize", source, "-o", "out.safetensors", "-f").exit_code == 0
    assert (tmp_path / "out.safetensors").is_symlink()
    read_all(real)


@pytest.mark.parametrize("way", ["itself", "hard link", "symbolic link", "another spelling", "a link to its folder"])
@pytest.mark.parametrize("name", ["quantize", "restore"])
def test_an_output_that_is_the_source_is_refused_even_with_force(way, name, modelzip, tmp_path):
    source = plain_pth(tmp_path / "model.pth")
    before = source.read_bytes()
    output = {"itself": source, "another spelling": f"../{tmp_path.name}/./model.pth"}.get(way, tmp_path / "same.pth")
    if way == "hard link":
        os.link(source, output)
    elif way == "symbolic link":
        os.symlink(source, output)
    elif way == "a link to its folder":
        os.symlink(tmp_path, tmp_path / "folder")
        output = "folder/model.pth"
    run = modelzip(name, source, "-o", output, "-f", "--json")
    assert (run.exit_code, run.json["error"]["kind"]) == (2, "output-is-source")
    assert source.read_bytes() == before


def test_an_output_may_not_hit_another_source_of_the_batch(modelzip, tmp_path):
    first, second = plain_safetensors(tmp_path / "a.safetensors"), tmp_path / "a.int8.safetensors"
    second.write_bytes(first.read_bytes())
    before = second.read_bytes()
    run = modelzip("quantize", first, second, "-f")
    assert run.exit_code == 2
    assert second.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [second.name, first.name]


# Inputs


@pytest.mark.parametrize("command", ["inspect", "quantize", "restore", "verify"])
@pytest.mark.parametrize("what", ["pipe", "device", "directory", "empty"])
def test_an_input_that_is_no_checkpoint_is_refused_at_once(what, command, modelzip, tmp_path):
    path = tmp_path / "model.safetensors"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        os.symlink("/dev/zero", path)
    elif what == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"")
    run = modelzip(command, path)
    assert run.exit_code == (2 if what == "directory" else 1)
    assert run.stderr.startswith(f"modelzip: error: {path}: ")
    assert run.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == [path]


def test_a_hostile_file_ends_with_its_own_code(modelzip, tmp_path):
    path = torch_file(tmp_path / "model.pth", mapping({"model": call("os.system", text("touch canary"))}))
    for command in ("inspect", "quantize", "verify", "restore"):
        run = modelzip(command, path)
        assert (run.exit_code, run.stdout) == (5, "")
        assert "os.system" in run.stderr
    assert [*tmp_path.iterdir()] == [path]
