"""A module imports lower layers or its own folder; heavy imports stand behind walls; commands load what they need."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import modelzip_cli

PACKAGE = Path(modelzip_cli.__file__).parent
LAYERS = (  # docs/architecture.md says what each is for
    ("__init__", "errors", "figures", "tensors", "report"),
    ("kernels",),
    ("compare", "criteria", "schemes", "containers"),
    ("coders",),
    ("layouts",),
    ("amounts", "defaults"),
    ("recipe",),
    ("source", "sampling", "recipe_file", "statistics"),
    ("allocate",),
    ("blocks", "depth", "feedback"),
    ("solving",),
    ("pruning",),
    ("informed",),
    ("plan",),
    ("compress", "survey"),
    ("output",),
    ("estimate", "search"),
    ("predict",),
    ("diff", "verify", "inspection", "grouping", "reporting"),
    ("single",),
    ("front",),
    ("running",),
    ("batch", "render", "html"),
    ("pages",),
    ("cli",),
)
NUMBER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
MODULES = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = {path: ".".join(parts) for path, parts in MODULES.items()}
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES.values())


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Every import of a module, inside functions and under TYPE_CHECKING too: (dotted name, line)."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            found += [(f"{node.module}.{name.name}", node.lineno) for name in node.names]
    return found


@cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call, with the name that stands before the bracket, such as `os.open`."""
    return [(ast.unparse(node.func), node) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]


def called(path: Path, names: tuple[str, ...]) -> list[str]:
    """The calls of any of `names`, as `name:line`."""
    return [f"{name}:{call.lineno}" for name, call in calls(path) if name in names]


def unit_of(dotted: str) -> str:
    """The folder or file of the package that `modelzip_cli.X.Y` is in."""
    parts = dotted.split(".")
    known = parts[1] if len(parts) > 1 else "__init__"
    return known if known in NUMBER else "__init__"


@pytest.mark.parametrize("path", [path for path in MODULES if NAMES[path] != "__init__"], ids=NAMES.get)
def test_a_module_imports_lower_layers_or_its_own_folder(path):
    own = MODULES[path][0]
    for dotted, line in imports(path):
        if dotted.split(".")[0] != "modelzip_cli":
            continue
        unit = unit_of(dotted)
        allowed = unit == own or NUMBER[unit] < NUMBER[own]
        assert allowed, f"{NAMES[path]}:{line} imports {dotted}, of layer {NUMBER[unit]}, from layer {NUMBER[own]}"


def test_importing_the_package_imports_nothing_of_it():
    """`load_file`, the one function for users, imports what it needs on its first call."""
    top = parsed(PACKAGE / "__init__.py").body
    assert [ast.unparse(node) for node in top if isinstance(node, (ast.Import, ast.ImportFrom))] == [
        "from __future__ import annotations",
        "from pathlib import Path",
        "from typing import TYPE_CHECKING",
    ]


def test_every_module_has_a_layer():
    assert {parts[0] for parts in MODULES.values()} == set(NUMBER)


WALLS = {
    "numba": {"kernels.jit", "kernels.vector"},
    "llvmlite": {"kernels.vector"},
    "torch": {"__init__"} | {name for name in NAMES.values() if name.startswith("running.")},
    "safetensors": {"running.resume", "running.student_file"},
    "pickle": set(),
    "zipfile": set(),
    "rich": {"render", "cli.progress"},
    "typer": {name for name in NAMES.values() if name.startswith("cli.")},
    "click": {name for name in NAMES.values() if name.startswith("cli.")},
}


@pytest.mark.parametrize("library", WALLS)
def test_a_library_is_imported_only_behind_its_wall(library):
    found = {NAMES[path] for path in MODULES for dotted, _ in imports(path) if dotted.split(".")[0] == library}
    assert found <= WALLS[library]


OPENERS = ("open", "os.open", "io.open", "tempfile.TemporaryFile", "tempfile.NamedTemporaryFile", "tempfile.mkstemp")
METHODS = (".open", ".write_bytes", ".write_text", ".touch", ".tofile", ".save", ".savez")


def opens_a_path(name: str, call: ast.Call) -> bool:
    """Whether a call can open a file; /dev/null is none, nor are bytes in memory."""
    if name not in OPENERS and not name.endswith(METHODS):
        return False
    given = [ast.unparse(argument) for argument in call.args]
    return not any(part in argument for argument in given for part in ("os.devnull", "BytesIO("))


@each_module
def test_only_one_module_opens_a_path_for_writing(path):
    opened = [call for name, call in calls(path) if opens_a_path(name, call)]
    if NAMES[path] == "containers.atomic":
        return
    if NAMES[path] == "containers.source_file":
        assert not {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"} & {
            node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)
        }
        return
    assert not [ast.unparse(call) for call in opened]


FOR_CLI_ONLY = ("print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write", "input")


@each_module
def test_only_the_command_line_prints_and_exits(path):
    if MODULES[path][0] != "cli":
        assert not called(path, FOR_CLI_ONLY)


@each_module
def test_nothing_runs_code_from_data(path):
    assert not called(path, ("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "os.system"))


@each_module
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(parsed(path))


LOADED = """
import json, os, sys
report = sys.argv.pop(1)
leave = os._exit
def tell_and_leave(code):
    with open(report, "w") as file:
        json.dump(sorted(sys.modules), file)
    leave(code)
os._exit = tell_and_leave
from modelzip_cli.cli.app import main
main()
"""


def loaded(tmp_path: Path, *arguments: str) -> set[str]:
    """The modules that a run of the command line leaves loaded."""
    report = tmp_path / "modules.json"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELZIP_", "PYTHON", "COV_"))}
    command = [sys.executable, "-c", LOADED, str(report), *arguments]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=kept, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return {name for name in json.loads(report.read_text()) if name.count(".") == 0 or name.startswith("modelzip_cli")}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["quantize", "--help"]], ids=" ".join)
def test_help_loads_no_library_for_numbers(tmp_path, arguments):
    found = loaded(tmp_path, *arguments)
    assert not found & {"torch", "numba", "rich", "numpy", "safetensors", "pydantic"}
    assert not {name for name in found if name.startswith(("modelzip_cli.schemes.", "modelzip_cli.kernels"))}


@pytest.mark.parametrize("name", ["docs_lm.safetensors", "digits_mlp.pth"])
def test_inspect_loads_no_torch_numba_or_rich(tmp_path, sample, name):
    found = loaded(tmp_path, "inspect", str(sample(name)))
    assert not found & {"torch", "numba", "rich", "safetensors", "pydantic"}


def test_inspect_of_a_safetensors_file_loads_nothing_of_torch_files(tmp_path, sample):
    found = loaded(tmp_path, "inspect", str(sample("docs_lm.safetensors")))
    assert not found & {"modelzip_cli.containers.torch_file", "modelzip_cli.containers.pickle_reader", "numpy"}


def test_a_small_quantize_loads_no_torch_or_numba(tmp_path, sample):
    found = loaded(tmp_path, "quantize", str(sample("digits_mlp.pth")))
    assert not found & {"torch", "numba", "rich", "safetensors", "pydantic"}
