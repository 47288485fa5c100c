"""Exported models (`.pt2`): loaded without running code from the file, and written.

`torch.export.load` runs what a file says, on the ways below. A file never reaches torch: `export_archive.cleaned`
writes a new archive of what is harmless in it, and that is loaded. In an archive, torch

- unpickles weights and constants with `use_pickle`, custom objects among the constants (`custom_obj_N`, `opaque_obj_N`)
  and those of torch 2.8 (`data/weights/NAME.pt`): refused;
- unpickles the sample inputs, freely where the safe way fails: refused where they name more than tensors need, and
  replaced by an empty entry;
- gives sizes (`expr_str`) to `sympy.sympify`, which evaluates: parsed by a grammar and printed anew;
- compiles `guards_code`, lines of Python, into a function: checked, dropped, and `check_guards=False`;
- writes the names of inputs (also `forward_arg_names`) and of parameters into the source of `forward`: all names are
  identifiers, those of parameters also other text without quotes and backslashes;
- finds operators (`target`) by `getattr` in `torch`, `math` and `operator`: a list, and those of aten that touch
  nothing but tensors;
- finds functions that are arguments (`as_operator`) in the same way: refused;
- imports modules for enums and defaultdicts in `in_spec` and `out_spec`: refused, and the trees are written anew;
- looks up metadata of nodes (`source_fn_stack`, `from_node`) and writes some into the source (`stack_trace`): dropped;
- loads shared libraries in `data/aotinductor/`: refused.

What is left can still compute for long or ask for much memory when it runs, and operators are trusted to check their
arguments. Source: PyTorch 2.13, torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py,
torch/export/_unlift.py, torch/fx/graph.py.

Several outputs become one: what is called `logits`, else the first tensor. Inputs are given by position.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from modelzip_cli.containers.memory_file import MemoryFile
from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.strict_json import dumps
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsafeInput, UnsupportedCheckpoint, inert
from modelzip_cli.running.export_archive import MODEL, cleaned
from modelzip_cli.running.graph import check_evaluable, evaluating, set_training
from modelzip_cli.running.inputs import Wanted

try:
    from torch.export.pt2_archive._package import load_pt2, package_pt2
except ImportError as error:  # torch 2.7 and older have another format
    raise UnsupportedCheckpoint(f"exported models need torch 2.9 or newer, this is {torch.__version__}") from error

LONGEST_CONTEXT = 1 << 31  # a bound above it is torch's way of saying that there is none


@dataclass(frozen=True)
class Exported:
    """A model from a `.pt2` file: tensors in by position, a tensor out.

    `module` is in evaluation mode (`graph.set_training` changes that); its names are those of the model that was
    exported, parameters that were tied are tied. `recipe`: what modelzip wrote beside the model, or None.
    """

    module: GraphModule
    wanted: Wanted
    recipe: dict[str, Any] | None


def load_export(path: Path) -> Exported:
    """Load the exported model at `path`; nothing in the file is run. Peak memory: twice the weights.

    Raises UnsafeInput where the file holds code, BrokenCheckpoint where it is damaged or contradicts itself,
    UnsupportedCheckpoint for a newer schema, inputs that are not tensors, no tensor as output, other archives.
    """
    file = SourceFile(path)
    try:
        found = cleaned(file)
        file.check_unchanged()
    finally:
        file.close()
    module = _module(found.archive)
    _tie(module, found.ties)
    set_training(module, False)
    try:
        check_evaluable(module)
        return Exported(module, _wanted(module), found.recipe)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{file.label}: {error}") from None


def save_export(
    module: nn.Module, example: tuple[Tensor, ...], *, wanted: Wanted, recipe: Mapping[str, Any] | None
) -> bytes:
    """Export `module`, or what `load_export` gave, in evaluation mode: the bytes of a `.pt2` file that torch can load.

    `example`: inputs of the module, of `wanted.batch` examples where it says one, else 2: torch takes a size of 1 for
    a constant. Axes are of any length where `wanted` says so and the model allows it, `wanted.context` being the most
    of the time axis. `recipe` lies beside the model, as JSON. The bytes depend on these alone: no paths, no time, no
    sample inputs. Names, ties and the modules that operators belong to stay; `module` stays in its mode.
    Raises UnsupportedCheckpoint for a model that torch.export cannot take, or only with a fixed batch size.
    """
    shapes = tuple(_axes(tensor, wanted) for tensor in example)
    buffer = io.BytesIO()
    with _quiet(), evaluating(module):
        try:
            program = export(module, example, dynamic_shapes=shapes)
            batch = _inputs(program.graph_module)[-len(example)].shape[0]
            if wanted.batch is None and is_concrete_int(batch):
                raise UnsupportedCheckpoint(f"torch.export fixes the batch size at {len(example[0])}")
            beside = {} if recipe is None else {"modelzip": dumps(dict(recipe))}
            package_pt2(buffer, exported_programs={MODEL: program}, extra_files=beside)
        except ModelzipError:
            raise
        except Exception as error:
            raise UnsupportedCheckpoint(f"torch.export cannot export the model: {_one_line(error)}") from error
    try:
        return cleaned(MemoryFile("the exported model", buffer.getvalue())).archive.buffer.getvalue()
    except UnsafeInput as error:
        raise UnsupportedCheckpoint(f"cannot be saved as .pt2, for modelzip would not load it: {error}") from error


def traced(module: nn.Module, example: tuple[Tensor, ...], *, wanted: Wanted) -> GraphModule:
    """The graph of `module` with weights of its own, as if it had been saved and loaded. Raises as `save_export`."""
    found = cleaned(MemoryFile("the exported model", save_export(module, example, wanted=wanted, recipe=None)))
    graph = _module(found.archive)
    _tie(graph, found.ties)
    set_training(graph, False)
    return graph


def _module(archive: MemoryFile) -> GraphModule:
    """The program of a cleaned archive as a module; the archive is closed, its memory free."""
    with _quiet():
        try:
            program: ExportedProgram = load_pt2(archive.buffer).exported_programs[MODEL]
            module = program.module(check_guards=False)
        except Exception as error:  # torch raises any kind, and names nothing
            raise BrokenCheckpoint(f"{archive.label}: torch.export cannot load it: {_one_line(error)}") from error
        finally:
            archive.buffer.close()
    return module


def _one_line(error: BaseException) -> str:
    """The first line of what went wrong, at its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return inert(": ".join([type(error).__name__, *lines[:1]]), longest=200)


def _tie(module: nn.Module, ties: Mapping[str, str]) -> None:
    """Make parameters that torch loads as several, with the same memory, one again."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for later, first in ties.items():
        if later in parameters and first in parameters:
            owner, _, name = later.rpartition(".")
            setattr(module.get_submodule(owner), name, parameters[first])


def _inputs(module: GraphModule) -> list[Tensor]:
    """Stand-ins for the inputs, with their shapes and dtypes; an axis of any length has a symbol."""
    return [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]


def _wanted(module: GraphModule) -> Wanted:
    inputs = _inputs(module)
    first = inputs[0]
    if first.dim() == 0:
        raise UnsupportedCheckpoint("its input is a single number, without a batch axis")
    batch, *shape = (int(size) if is_concrete_int(size) else None for size in first.shape)
    is_tokens = not first.is_floating_point() and not first.is_complex() and first.dtype != torch.bool
    return Wanted(
        kind="tokens" if is_tokens else "floats",
        shape=tuple(shape),
        batch=batch,
        inputs=len(inputs),
        context=_longest(module, first) if is_tokens and first.dim() > 1 else None,
        dtype=first.dtype if first.is_floating_point() and first.dtype != torch.float32 else None,
    )


def _longest(module: GraphModule, tokens: Tensor) -> int | None:
    """The most tokens that an example may have, or None where nothing bounds them."""
    size: Any = tokens.shape[1]
    if is_concrete_int(size):
        return int(size)
    constraints: Any = module.range_constraints
    upper = getattr(constraints.get(size.node.expr), "upper", None)
    return int(upper) if upper is not None and upper.is_Integer and upper < LONGEST_CONTEXT else None


def _axes(tensor: Tensor, wanted: Wanted) -> dict[int, Any]:
    """Which axes of an input torch.export shall leave open, and how far."""
    axes: dict[int, Any] = {} if wanted.batch is not None else {0: Dim.AUTO}
    shape = wanted.shape
    if shape is None and wanted.kind == "tokens":
        shape = (None,) * (tensor.dim() - 1)
    for axis, size in enumerate(shape or (), start=1):
        if size is None and axis < tensor.dim():
            is_time = axis == 1 and wanted.kind == "tokens" and wanted.context is not None
            axes[axis] = Dim.AUTO(max=wanted.context) if is_time else Dim.AUTO
    return axes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of torch, which are for authors of models."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
