"""When kernels are compiled and where compiled code is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import os, sys
import numpy as np
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.widen import widen_bf16
for weights in map(int, sys.argv[1:]):
    jit.expect(weights)
    widen_bf16(np.zeros((1, 1), np.uint16))
    print("numba" in sys.modules, end=" ")
print(os.environ.get("NUMBA_CACHE_DIR", "unset"))
"""


def loads_numba(*announced: int, **environment: str) -> list[str]:
    """Whether numba was there at the first call after each announcement, and the folder for compiled code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "MODELZIP_", "XDG_"))}
    command = [sys.executable, "-c", REPORT, *map(str, announced)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.split()


def test_small_runs_stay_in_numpy_and_announcements_add_up(tmp_path):
    from modelzip_cli.kernels.jit import WORTH_NUMBA

    most = WORTH_NUMBA - 1
    assert loads_numba(most, 1, NUMBA_CACHE_DIR=str(tmp_path)) == ["False", "True", str(tmp_path)]


@pytest.mark.parametrize(("choice", "loaded"), [("numba", "True"), ("numpy", "False")])
def test_the_choice_can_be_made_by_hand(tmp_path, choice, loaded):
    announced = 1 if choice == "numba" else 10**12
    assert loads_numba(announced, MODELZIP_KERNELS=choice, NUMBA_CACHE_DIR=str(tmp_path))[0] == loaded


def test_compiled_code_is_kept_in_a_folder_that_only_the_user_can_enter(tmp_path):
    *_, folder = loads_numba(1, MODELZIP_KERNELS="numba", HOME=str(tmp_path))
    assert folder == str(tmp_path / ".cache" / "modelzip" / "kernels")
    assert Path(folder).stat().st_mode & 0o777 == 0o700


def test_numpy_does_where_no_folder_for_compiled_code_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert loads_numba(1, MODELZIP_KERNELS="numba", HOME=str(tmp_path / "file"))[0] == "False"
