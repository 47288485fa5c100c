"""Programs of torch.export with one calling convention: tensors by position in, one tensor out.

Source: torch/_export/serde/schema.py. A program is the dict that `export_schema.PROGRAM` returns.
"""

from __future__ import annotations

from typing import Any

from modelzip_cli.containers.strict_json import dumps
from modelzip_cli.errors import UnsupportedCheckpoint
from modelzip_cli.running.export_schema import malformed
from modelzip_cli.running.export_text import leaves

LOGITS = "logits"
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}

Program = dict[str, Any]


def tensors_in(program: Program) -> Program:
    """The program with all its inputs by position, constants among them left out: they are part of the graph.

    Raises UnsupportedCheckpoint for inputs that are neither.
    """
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    if len(graph["inputs"]) != len(signature["input_specs"]):
        raise malformed("inputs of graph and signature differ")
    kept, names = [], []
    for argument, spec in zip(graph["inputs"], signature["input_specs"], strict=True):
        ((kind, inner),) = spec.items()
        if kind == "constant_input":
            continue
        if "as_tensor" not in argument or (kind == "user_input" and "as_tensor" not in inner["arg"]):
            raise UnsupportedCheckpoint("it takes inputs that are not tensors; modelzip gives a model tensors alone")
        kept.append((argument, spec))
        if kind == "user_input":
            names.append(argument["as_tensor"]["name"])
    if not names:
        raise UnsupportedCheckpoint("it takes no input")
    in_spec = _tree(
        "builtins.tuple",
        "null",
        [_tree("builtins.tuple", "null", [LEAF] * len(names)), _tree("builtins.dict", "[]", [])],
    )
    return _with(
        program,
        graph | {"inputs": [argument for argument, _ in kept]},
        signature | {"input_specs": [spec for _, spec in kept]},
        _signature(program) | {"in_spec": dumps([1, in_spec]), "forward_arg_names": names},
    )


def one_tensor_out(program: Program) -> Program:
    """The program with one output: what is called `logits`, else the first tensor.

    Outputs that are buffers to be written stay. Raises UnsupportedCheckpoint where no output is a tensor.
    """
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    outputs, specs = graph["outputs"], signature["output_specs"]
    places = [place for place, spec in enumerate(specs) if "user_output" in spec]
    keys = leaves(_signature(program)["out_spec"])
    if len(outputs) != len(specs) or len(keys) != len(places):
        raise malformed("outputs of graph and signature differ")
    tensors = [(key, place) for key, place in zip(keys, places, strict=True) if "as_tensor" in outputs[place]]
    if not tensors:
        raise UnsupportedCheckpoint("it returns no tensor")
    chosen = next((place for key, place in tensors if key == LOGITS), tensors[0][1])
    kept = [place for place in range(len(specs)) if place not in places or place == chosen]
    return _with(
        program,
        graph | {"outputs": [outputs[place] for place in kept]},
        signature | {"output_specs": [specs[place] for place in kept]},
        _signature(program) | {"out_spec": dumps([1, LEAF])},
    )


def _signature(program: Program) -> dict[str, Any]:
    calls = program["graph_module"]["module_call_graph"]
    if not calls or "signature" not in calls[0]:
        raise malformed("no calling convention")
    return calls[0]["signature"]  # type: ignore[no-any-return]


def _tree(kind: str, context: str, children: list[Any]) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": children}


def _with(program: Program, graph: Any, signature: Any, call: Any) -> Program:
    """The program with these parts; of the modules that it was made from, only the whole keeps a signature."""
    call = {"inputs": [], "outputs": []} | call
    parts = {"graph": graph, "signature": signature, "module_call_graph": [{"fqn": "", "signature": call}]}
    return program | {"graph_module": program["graph_module"] | parts}
