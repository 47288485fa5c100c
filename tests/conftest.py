"""What every test may use: the program, in this process or as it is installed, and copies of the sample models."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
import typer
from hypothesis import HealthCheck, settings

from modelzip_cli.cli import app as program
from modelzip_cli.kernels import jit

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program asks torch for; here torch may be loaded first

PROGRAM = Path(sys.executable).with_name("modelzip")
SAMPLES = Path(__file__).parent.parent / "sample_models"
GIVE_UP = 300  # seconds; a hanging program fails its test, a slow machine does not

# The same examples in every run; a kernel's first call compiles, and a busy machine is slow: neither is a failure.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}
settings.register_profile("modelzip", max_examples=25, derandomize=True, **UNTIMED)
settings.register_profile("thorough", max_examples=1000, **UNTIMED)  # pytest --hypothesis-profile=thorough
settings.load_profile("modelzip")


def pytest_collection() -> None:
    """What is imported and collected stays: the garbage collector need not look at it again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage; a collection takes as long as hundreds of tests, so it comes seldom."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker its own part of the files: what a module prepares is prepared once. Who is done helps."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@dataclass(frozen=True)
class Run:
    """What a run of the program left: its exit code and its two streams."""

    exit_code: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.stdout_bytes.decode()

    @property
    def json(self) -> Any:
        """Standard output as the one JSON value that it must be; NaN and Infinity are no JSON."""
        return json.loads(self.stdout_bytes, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for compiled kernels, shared by the session and its xdist workers, gone with it."""
    folder = tmp_path_factory.getbasetemp()
    cache = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "kernel-cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    return cache


@pytest.fixture(scope="session", autouse=True)
def _kernels_of_this_process_use_the_cache(kernel_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(kernel_cache))  # before numba is imported
        _compile_each_kernel_once(patch, kernel_cache)
        yield


def _compile_each_kernel_once(patch: pytest.MonkeyPatch, kernel_cache: Path) -> None:
    """While a worker compiles a kernel, another that wants it waits for what will be in the cache."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.dispatcher import Dispatcher

    compile_it = Dispatcher.compile

    def compile_alone(kernel: Any, signature: Any) -> Any:
        name = kernel.py_func.__module__, kernel.py_func.__qualname__
        with global_compiler_lock, (kernel_cache / f"{'.'.join(name)}.lock").open("w") as file:  # always in this order
            fcntl.flock(file, fcntl.LOCK_EX)
            return compile_it(kernel, signature)

    patch.setattr(Dispatcher, "compile", compile_alone)


@pytest.fixture(scope="session", autouse=True)
def _this_process_waits_for_no_disk() -> Iterator[None]:
    """What has reached the disk shows after a power cut only; that the calls are made, and may fail, shows as ever."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):  # macOS has no fdatasync
                patch.setattr(os, name, _refuse_what_has_no_disk)
        yield


def _refuse_what_has_no_disk(descriptor: int) -> None:
    """Fail where `os.fsync` does: for what is closed, for pipes and for terminals."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """Typer makes them from the functions anew for every run; in a process of its own there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as machine code in this process, however little there is to do; the program chooses by itself."""
    monkeypatch.setenv(jit.CHOICE, "numba")
    monkeypatch.setattr(jit._Work, "numba", None)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the program, of which nothing that it does depends."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(kernel_cache: Path, home: Path) -> dict[str, str]:
    """The environment of the program: no settings of the person who runs the tests, another home."""
    own = (
        "MODELZIP_",
        "NUMBA_",
        "XDG_",
        "PYTHON",
        "COLUMNS",
        "LINES",
        "TERM",
        "NO_COLOR",
        "FORCE_COLOR",
        "LC_",
        "LANG",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {"NUMBA_CACHE_DIR": str(kernel_cache), "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}


@pytest.fixture
def installed(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Run]:
    """Run the installed program in `tmp_path`, as a shell would: `installed("inspect", path, "--json")`.

    `stdin`: bytes for the program, else it reads an empty stream; `env`: variables to add.
    """

    def run(*arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path = tmp_path) -> Run:
        done = subprocess.run(
            [PROGRAM, *words(arguments)],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env=environment | (env or {}),
            check=False,
            timeout=GIVE_UP,
        )
        return Run(done.returncode, done.stdout, done.stderr.decode(errors="surrogateescape"))

    return run


@pytest.fixture
def modelzip(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Run]:
    """The same in this process, which saves starting Python and loading numba a thousand times.

    The program has the environment, the folder, the three descriptors and the kernels that a process of its own would
    have; what a process is (signals, start-up, what is imported when) needs `installed`. `one_stream`: errors go
    where standard output goes, as with `2>&1`.
    """

    def run(
        *arguments: object,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path = tmp_path,
        one_stream: bool = False,
    ) -> Run:
        with (
            _alarm(),
            pytest.MonkeyPatch.context() as patch,
            _descriptors(patch, stdin, one_stream=one_stream) as (stdout, stderr),
            _warnings_are_written(),
        ):
            patch.chdir(cwd)
            for name in {*os.environ} - {*environment}:
                patch.delenv(name)
            for name, value in (environment | (env or {})).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [os.fspath(PROGRAM), *words(arguments)])
            patch.setattr(sys, "path", [*sys.path])  # a model of the user's own code adds its folder
            patch.setattr(jit._Work, "announced", 0)
            patch.setattr(jit._Work, "numba", None)
            exit_code = program._run(sys.argv[1:])
            sys.stdout.flush()
            sys.stderr.flush()
            printed = [_content(file) for file in (stdout, stderr)]
        return Run(exit_code, printed[0], printed[1].decode(errors="surrogateescape"))

    return run


def words(arguments: tuple[object, ...]) -> list[str]:
    """A command line."""
    return [os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments]


@contextmanager
def _descriptors(patch: pytest.MonkeyPatch, stdin: bytes, *, one_stream: bool) -> Iterator[list[IO[bytes]]]:
    """Files as the three standard streams, for Python and below it; gives those of output and errors."""
    with ExitStack() as stack:
        files: list[IO[bytes]] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        if one_stream:
            files[2] = files[1]
        files[0].write(stdin)
        files[0].seek(0)
        for descriptor, (name, file) in enumerate(zip(("stdin", "stdout", "stderr"), files, strict=True)):
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            os.dup2(file.fileno(), descriptor)
            mode, errors = ("r", "strict") if descriptor == 0 else ("w", "backslashreplace")
            lines = 1 if name == "stderr" else -1  # as Python buffers them where they are no terminal
            stream = open(descriptor, mode, lines, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            patch.setattr(sys, name, stream)
        yield files[1:]


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@contextmanager
def _warnings_are_written() -> Iterator[None]:
    """On standard error, as without pytest, where a test sees them."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = lambda *message: sys.stderr.write(warnings.formatwarning(*message[:4]))
        yield


@contextmanager
def _alarm() -> Iterator[None]:
    """Fail instead of hanging."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(GIVE_UP)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small network, its weights in every kind of file, and data, made once: see `tests/classifier.py`."""
    from tests.classifier import make_classifier  # imports torch, which few tests need

    return make_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a checkpoint of `sample_models/` into `tmp_path`: `sample("digits_mlp.pth")` is the path of the copy."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(SAMPLES / name, tmp_path / name))

    return copy
