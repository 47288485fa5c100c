"""Every `console` block of README and docs is run, in order, in a folder with the sample models, and compared.

A `python` block that begins with a comment of a file's name, `# mine.py`, lies there under that name.

MODELZIP_REFRESH_DOCS=1 writes the output of this run into the pages instead; read the diff before you commit it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelzip_cli.kernels import jit
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
REFRESH = os.environ.get("MODELZIP_REFRESH_DOCS") == "1"
CHANGING = (  # what differs from run to run
    (re.compile(r"\b\d+\.\d s\b"), "0.1 s"),
    (re.compile(r"peak [\d.]+ [MG]B"), "peak 60 MB"),
)


RUNS_A_MODEL = re.compile(r"^modelzip (eval|distill|prune .*--channels|.* --(data|statistics) )")
FOR_A_SHELL = re.compile(r"[|&;<>*$'\"]")
NUMBER = re.compile(r"\d[\d,.]*(e-?\d+)?")
BAR = re.compile("[█▏▎▍▌▋▊▉]+")


def masked(text: str) -> str:
    for pattern, stand_in in CHANGING:
        text = pattern.sub(stand_in, text)
    return text


def comparable(page: str) -> str:
    """A page without what may differ: times, and all figures of models that ran, whose last digits are the processor's.

    What is left of these are the words, and how many figures there are.
    """
    shown, figures_differ = [], False
    for line in masked(page).splitlines():
        if line.startswith(("$ ", "```")):
            figures_differ = RUNS_A_MODEL.match(line.removeprefix("$ ")) is not None
        elif figures_differ:
            line = re.sub(r"[ -]+", " ", BAR.sub("", NUMBER.sub("N", line)))
        shown.append(line)
    return "\n".join(shown)


@pytest.fixture
def prints(modelzip: Callable[..., Run], tmp_path: Path, environment: dict[str, str]) -> Callable[[str], str]:
    """What a line of shell prints. To compare it, what is our program alone runs in this process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(line: str) -> str:
        slow = {jit.CHOICE: "numba"} if " compress " in line else {}  # the same in less time, once it is compiled
        if line.startswith("modelzip ") and not FOR_A_SHELL.search(line) and not REFRESH:
            return modelzip(*line.split()[1:], env=slow, one_stream=True).stdout
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment | slow | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=300,
        )
        return done.stdout.decode()

    return run


def run_block(block: str, prints: Callable[[str], str]) -> str:
    """Run the `$ ` lines of a block one after the other; return the block as it would look with their output."""
    lines = []
    for command in [line[2:] for line in block.splitlines() if line.startswith("$ ")]:
        lines += [f"$ {command}", *(line.rstrip() for line in prints(command).splitlines())]
    return masked("\n".join(lines) + "\n")


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name)
def test_the_console_blocks_of_a_page_show_what_the_program_prints(page, prints, tmp_path):
    shutil.copytree(ROOT / "sample_models", tmp_path / "sample_models")
    shown = page.read_text()
    for name, code in FILE.findall(shown):
        (tmp_path / name).write_text(code)
    ran = BLOCK.sub(lambda found: run_block(found[0], prints), shown)
    if REFRESH:
        page.write_text(ran)
        return
    assert comparable(shown) == comparable(ran)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_point_at_files(page):
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_every_command_has_a_page_and_a_row_in_the_readme(modelzip):
    listed = modelzip("--help").stdout.partition("Commands:\n")[2].splitlines()
    commands = [line.split()[0] for line in listed if line.strip()]
    readme = (ROOT / "README.md").read_text()
    assert len(commands) >= 6
    for command in commands:
        assert (ROOT / "docs" / f"{command}.md").is_file()
        assert f"](docs/{command}.md)" in readme


def test_the_exit_codes_of_all_errors_are_documented():
    from modelzip_cli.errors import ModelzipError

    page = (ROOT / "docs" / "exit-codes.md").read_text()
    errors, seen = [ModelzipError], []
    while errors:
        error = errors.pop()
        seen.append(error)
        errors += error.__subclasses__()
    assert len(seen) > 10
    for error in seen:
        assert error.__doc__, error
        assert f"\n| {error.exit_code} |" in page, error
