"""`--arch`: networks from the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from modelzip_cli.errors import ModelzipError, UsageError, UserCodeFailed
from modelzip_cli.running.architecture import build, describe, parse_arch_args
from tests.running.opening import written

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int, *, classes: int = 2):
        super().__init__()
        self.layer = nn.Linear(width, classes)

class Fails(nn.Module):
    def __init__(self):
        raise RuntimeError("no such\\nfile")

class NeedsMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, int(torch.ones(2).sum()))

def make(width=3):
    return Net(width)

def ends():
    raise SystemExit(0)

network = nn.Linear(2, 2)
number = 3
def gives_a_number(): return 3
"""


@pytest.fixture
def arch(tmp_path: Path) -> Callable[[str], str]:
    """The import path of a name in the code above."""
    path = written(tmp_path / "net.py", CODE)
    return lambda name: f"{path}:{name}"


@pytest.mark.parametrize(
    ("text", "values"),
    [(None, {}), ("{}", {}), ('{"width": 64, "names": ["a"]}', {"width": 64, "names": ["a"]})],
)
def test_arguments_are_a_json_object(text, values):
    assert parse_arch_args(text) == values


@pytest.mark.parametrize("text", ["", "width=64", "[64]", "64", "null", "{'width': 64}", '{"width": 64'])
def test_other_arguments_are_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"""--arch-args .*: write a JSON object, such as '\{"width": 64\}'"""):
        parse_arch_args(text)


def test_a_class_is_called_with_its_arguments(arch):
    assert build(arch("Net"), {"width": 5, "classes": 3}).layer.weight.shape == (3, 5)


def test_a_function_is_called_with_its_arguments(arch):
    assert build(arch("make"), {}).layer.weight.shape == (2, 3)
    assert build(arch("make"), {"width": 4}).layer.weight.shape == (2, 4)


def test_a_network_that_is_there_already_is_copied(tmp_path, monkeypatch):
    written(tmp_path / "module_of_networks.py", CODE)
    monkeypatch.chdir(tmp_path)
    first, second = (build("module_of_networks:network", {}) for _ in range(2))  # such as a model and its reference
    assert first is not second
    with torch.no_grad():
        first.weight.zero_()
    assert second.weight.any()


@pytest.mark.parametrize(
    ("name", "arguments", "error", "problem"),
    [
        ("Net", {}, UsageError, "missing a required argument: 'width'; it takes (width: int, *, classes: int = 2)"),
        ("Net", {"widht": 3}, UsageError, "missing a required argument: 'width'"),
        ("Net", {"width": 3, "depth": 2}, UsageError, "got an unexpected keyword argument 'depth'; it takes (width"),
        ("Net", {"width": "wide"}, UserCodeFailed, "TypeError: "),
        ("network", {"width": 3}, UsageError, "is a network already and takes no --arch-args"),
        ("number", {}, UsageError, "is no class or function that makes a network"),
        ("gives_a_number", {}, UsageError, "gave a int, not a torch module"),
        ("Fails", {}, UserCodeFailed, "RuntimeError: no such; --debug shows where"),
        ("ends", {}, UserCodeFailed, "ends the program (sys.exit, or arguments that it reads itself)"),
        ("Nett", {"width": 3}, UsageError, "net.py has no Nett; did you mean 'Net'?"),
    ],
)
def test_what_makes_no_network_is_told_in_a_line(arch, name, arguments, error, problem):
    with pytest.raises(ModelzipError) as caught:
        build(arch(name), arguments)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{arch(name)}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["net.py", "resnet50", "a b:c", "net.py:", "model.onnx"])
def test_what_names_no_network_is_refused_with_the_forms(arch):
    with pytest.raises(UsageError, match=r"names no network; write file.py:Net, package.module:factory, an exported"):
        build(arch, {})


def test_a_module_that_ends_the_program_as_it_is_imported_is_told(tmp_path):
    path = written(tmp_path / "script.py", "import argparse\nargparse.ArgumentParser().parse_args(['--epochs'])\n")
    with pytest.raises(UserCodeFailed, match=r"script.py:Net: ends the program .* if __name__ == '__main__':"):
        build(f"{path}:Net", {})


def test_names_and_shapes_can_be_checked_before_there_is_memory(arch):
    seen: list[nn.Module] = []
    made = build(arch("Net"), {"width": 5}, check=seen.append)
    assert [part.layer.weight.is_meta for part in (*seen, made)] == [True, False]


def test_a_check_that_fails_ends_it(arch):
    def check(sketch: nn.Module) -> None:
        raise UsageError("does not fit")

    with pytest.raises(UsageError, match="does not fit"):
        build(arch("Net"), {"width": 1 << 40}, check=check)  # which no memory would hold


@pytest.mark.parametrize("name", ["NeedsMemory", "make"])
def test_code_that_allows_no_sketch_is_not_checked_beforehand(arch, name):
    seen: list[nn.Module] = []
    assert build(arch(name), {}, check=seen.append).layer.weight.shape == (2, 3)
    assert not seen


def test_the_code_runs_once(tmp_path, capsys):
    path = written(tmp_path / "net.py", f"{CODE}\nprint('imported')")
    build(f"{path}:Net", {"width": 2}, check=lambda sketch: None)
    assert capsys.readouterr().out.count("imported") == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("one\ntwo"), "RuntimeError: one"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError: no message"),
        (OSError("\x1b[2J"), "OSError: \\x1b[2J"),
    ],
    ids=repr,
)
def test_an_error_is_described_by_its_kind_and_first_line(error, text):
    assert describe(error) == text
