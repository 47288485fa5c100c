"""Small honest checkpoints, made once, that the tests then damage; a process that reads what they made of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.single import Settings, compress_file
from tests.hostile import reader
from tests.hostile.honest import honest_safetensors, honest_torch, tiny_torch

HONEST_RULES = tuple(  # by full names: a pattern leaves tensors as small as these alone
    Rule(name, scheme)
    for names, scheme in (
        (("layer.weight", "tied.weight", "layer.bias"), "int4-g32-asym"),
        (("last.weight",), "int8-tensor"),
    )
    for name in names
)


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few hundred bytes of weights in each container: safetensors, torch, and both of them compressed."""
    folder = tmp_path_factory.mktemp("honest")
    plain, nested = honest_safetensors(folder / "plain.safetensors"), honest_torch(folder / "nested.pth")
    recipe = Recipe(keep_extras=True, rules=HONEST_RULES)
    found = {"safetensors": plain, "torch": nested}
    for container, suffix in (("safetensors", ".safetensors"), ("torch", ".pth")):
        output = folder / f"small{suffix}"
        compress_file(nested, output, recipe, Settings(), command="quantize")
        found[f"native-{container}"] = output
    return found


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A compressed file in each container, as small as one can be: every bit of it is going to be flipped."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = Recipe(scheme="keep", rules=(Rule("w", "int2-tensor"), Rule("t", "int2-tensor")))
    outputs = {"safetensors": folder / "tiny.safetensors", "torch": folder / "tiny.pth"}
    for output in outputs.values():
        compress_file(tiny_torch(folder / "t.pt"), output, recipe, Settings(), command="quantize")
    return outputs


@pytest.fixture(scope="session")
def read_in_a_process() -> Iterator[Callable[[Path], tuple[str, str, int]]]:
    """Read a file where memory and processor time are limited: what came out, what was imported, peak megabytes."""
    command, root = [sys.executable, "-m", reader.__name__], Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdin
        assert process.stdout
        requests, answers = process.stdin, process.stdout

        def read(path: Path) -> tuple[str, str, int]:
            print(path, file=requests, flush=True)
            outcome, imported, peak = (answers.readline().removesuffix("\n") for _ in range(3))
            return outcome, imported, int(peak)

        yield read
