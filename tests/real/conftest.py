"""Commands on real checkpoints: in this process, or in a line of shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelzip_cli.cli import app as program
from tests.conftest import GIVE_UP, PROGRAM, Run


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., Run]:
    """Run a command line in this process and in `tmp_path`: `run("quantize", path, "--json")`."""
    monkeypatch.chdir(tmp_path)

    def call_program(*arguments: object) -> Run:
        capsys.readouterr()
        code = program._run([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Run(code, found.out.encode(), found.err)

    return call_program


@pytest.fixture
def there_and_back(run, tmp_path) -> Callable[..., Path]:
    """Compress a file, int8 unless told, restore it, and return what `restore` wrote, under the name it chose."""

    def go(source: Path, *options: object) -> Path:
        small = tmp_path / "small.safetensors"
        done = run("quantize", source, "-o", small, "-f", *options)
        assert done.exit_code == 0, done.stderr
        back = run("restore", small, "-f", "-q")
        assert back.exit_code == 0, back.stderr
        return Path(back.stdout.strip())

    return go


@pytest.fixture
def shell(tmp_path, environment) -> Callable[..., subprocess.CompletedProcess]:
    """Run a line of shell in `tmp_path`, in which `modelzip` is the installed program; output is bytes."""
    path = f"{PROGRAM.parent}{os.pathsep}{environment['PATH']}"

    def run_line(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=tmp_path,
            env=environment | {"PATH": path},
            check=False,
            timeout=GIVE_UP,
        )

    return run_line
