"""What every test may use: the installed program as a subprocess, and copies of the sample models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PROGRAM = Path(sys.executable).with_name("modelzip")
SAMPLES = Path(__file__).parent.parent / "sample_models"
GIVE_UP = 300  # seconds; a hanging program fails its test, a slow machine does not

# The same examples in every run; a kernel's first call compiles, and a busy machine is slow: neither is a failure.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}
settings.register_profile("modelzip", max_examples=25, derandomize=True, **UNTIMED)
settings.register_profile("thorough", max_examples=1000, **UNTIMED)  # pytest --hypothesis-profile=thorough
settings.load_profile("modelzip")


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
        patch.setenv("NUMBA_CACHE_DIR", str(kernel_cache))
        yield


@pytest.fixture
def environment(kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the program: no settings of the person who runs the tests, a home of its own."""
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
    home = tmp_path_factory.mktemp("home")
    return kept | {"NUMBA_CACHE_DIR": str(kernel_cache), "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}


@pytest.fixture
def modelzip(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Run]:
    """Run the installed program in `tmp_path`, as a shell would: `modelzip("inspect", path, "--json")`.

    `stdin`: bytes for the program, else it reads an empty stream; `env`: variables to add.
    """

    def run(*arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path = tmp_path) -> Run:
        command = [PROGRAM, *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)]
        done = subprocess.run(
            command,
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
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a checkpoint of `sample_models/` into `tmp_path`: `sample("digits_mlp.pth")` is the path of the copy."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(SAMPLES / name, tmp_path / name))

    return copy
