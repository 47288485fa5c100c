"""Statistics of a model on data, written to a file as they are made: memory is that of a few layers.

Sources: second moments: Sun et al., Wanda, 2023, arXiv:2306.11695; Hessians: Frantar et al., GPTQ, 2022,
arXiv:2210.17323, section 3; gradients on labels drawn from the model (the Fisher information, not the empirical one):
Kunstner, Balles and Hennig, Limitations of the empirical Fisher approximation, 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modelzip_cli.containers.safetensors_file import SafetensorsSink, header_text
from modelzip_cli.errors import inert
from modelzip_cli.running.inputs import Batch, seed_of
from modelzip_cli.running.model import Model, apart, counted_positions
from modelzip_cli.running.watching import Watch
from modelzip_cli.running.weights import file_names
from modelzip_cli.statistics import FISHER, HESSIAN, SECOND_MOMENT, SENSITIVITY, TAYLOR, metadata_of, shape_of
from modelzip_cli.tensors import F32, TensorSpec

BUDGET = 64 << 20  # bytes of statistics that are gathered in one pass over the data
SMALL_BATCH, TEMPERATURE = 8, 4.0  # gradients of large batches cancel; a model sure of itself has hardly any
ROWS = 32  # of a Hessian that are added at a time
NOISE = 0.08  # of the root mean square of a weight: what outputs are watched under
SENSITIVE_BATCHES = 2

Say = Callable[[str], None]
Arrays = Mapping[str, Tensor]


def calibrate(
    model: Model,
    specs: Sequence[TensorSpec],
    batches: Sequence[Batch],
    kinds: Sequence[str],
    path: Path,
    *,
    replace: bool,
    data: str,
    say: Say = lambda _: None,
) -> bool:
    """Write the statistics `kinds` of the weights `specs` of `model` on `batches` to a file at `path`.

    Weights that a kind is not for have none: inputs are known of linear layers and of convolutions of one group. Where
    there is none at all, no file is written; says whether one was.
    """
    names = file_names(model.module, [spec.name for spec in specs])
    by_name = {spec.name: spec for spec in specs}
    everything = model.module.named_parameters(remove_duplicate=False)  # a file may have either name of a tie
    parameters = {names[name]: one for name, one in everything if name in names}
    wanted = [by_name[name] for name in by_name if name in parameters]
    of_inputs = [kind for kind in (SECOND_MOMENT, HESSIAN) if kind in kinds]
    of_gradients = [kind for kind in (FISHER, TAYLOR) if kind in kinds]
    layers = _layers(model, names, batches[0]) if of_inputs or SENSITIVITY in kinds else set()
    inside = [spec for spec in wanted if spec.name in layers]
    sensitive = inside if SENSITIVITY in kinds else []
    planned = [(spec, kind) for kind in of_inputs for spec in inside]
    planned += [(spec, kind) for kind in of_gradients for spec in wanted]
    planned += [(spec, SENSITIVITY) for spec in sensitive]
    if not planned:
        return False
    arrays = [TensorSpec(f"{spec.name}:{kind}", F32, shape_of(spec, kind)) for spec, kind in planned]
    examples = sum(len(batch.inputs[0]) for batch in batches)
    metadata = metadata_of(examples, Path(data).name, model.rung)
    sink = SafetensorsSink(path, replace=replace, header_bytes=len(header_text(arrays, metadata).encode()))
    try:
        for kind in of_inputs:
            for group in _groups(inside, kind):
                say(f"{kind.replace('_', ' ')} of {inert(group[0].name)}")
                _write(sink, kind, _of_inputs(model, names, group, batches, kind))
        for kind in of_gradients:
            for group in _groups(wanted, kind):
                say(f"{kind} of {inert(group[0].name)}")
                found = gradient_sums(model, {each.name: parameters[each.name] for each in group}, batches, kind)
                _write(sink, kind, {each.name: found[each.name].reshape(shape_of(each, kind)) for each in group})
        if sensitive:
            say("sensitivity of the outputs")
            few = batches[:SENSITIVE_BATCHES]
            found = _sensitivities(model, {each.name: parameters[each.name] for each in sensitive}, few)
            _write(sink, SENSITIVITY, found)
        sink.finish(metadata, None)
        sink.commit()
        return True
    finally:
        sink.abort()


def _groups(specs: Sequence[TensorSpec], kind: str) -> Iterator[list[TensorSpec]]:
    """Weights whose statistics fit in the budget together; a larger one alone."""
    group: list[TensorSpec] = []
    used = 0
    for spec in specs:
        rows, columns = shape_of(spec, kind)
        size = 8 * rows * columns  # sums are float64, or float32 beside gradients of the same size
        if group and used + size > BUDGET:
            yield group
            group, used = [], 0
        group.append(spec)
        used += size
    if group:
        yield group


def _write(sink: SafetensorsSink, kind: str, arrays: Arrays) -> None:
    for name, tensor in arrays.items():
        values = np.ascontiguousarray(tensor.numpy(), np.float32)
        spec = TensorSpec(f"{name}:{kind}", F32, values.shape)
        sink.begin(spec)
        sink.write(spec.name, 0, values.reshape(-1).view(np.uint8).data, 0)


def _layers(model: Model, names: Mapping[str, str], batch: Batch) -> set[str]:
    """The weights whose inputs are seen when the model runs."""
    found: set[str] = set()
    with watched(model, names, lambda name, rows: found.add(name)) as run:
        run(batch)
    return found


@contextmanager
def watched(
    model: Model, names: Mapping[str, str], seen: Callable[[str, Tensor], None]
) -> Iterator[Callable[[Batch], Tensor]]:
    """Run the model on batches, and be told what its weights are multiplied with; padding is left out."""
    watch = Watch(model.module, names, seen)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer has no inputs to see

    def run(batch: Batch) -> Tensor:
        watch.counted = batch.inputs[1].bool() if len(batch.inputs) > 1 and batch.inputs[1].ndim == 2 else None
        with torch.no_grad(), watch:
            return model.scores(batch)

    try:
        yield run
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _of_inputs(
    model: Model, names: Mapping[str, str], group: Sequence[TensorSpec], batches: Sequence[Batch], kind: str
) -> dict[str, Tensor]:
    """mean x x^T, [columns, columns], or its diagonal [1, columns], over all positions; float64 sums."""
    sums = {spec.name: torch.zeros(shape_of(spec, kind), dtype=torch.float64) for spec in group}
    counts = dict.fromkeys(sums, 0)

    def add(name: str, rows: Tensor) -> None:
        rows = rows.float()
        if kind == HESSIAN:
            product = rows.T @ rows
            for total, more in zip(torch.split(sums[name], ROWS), torch.split(product, ROWS), strict=True):
                total += more  # in parts, since torch makes a float64 copy of what is added
        else:
            sums[name] += rows.square().sum(0, keepdim=True, dtype=torch.float64)
        counts[name] += len(rows)

    wanted = {ours: theirs for ours, theirs in names.items() if theirs in sums}
    with watched(model, wanted, add) as run:
        for batch in batches:
            run(batch)
    return {name: sums.pop(name).div_(max(1, counts[name])).float() for name in list(sums)}  # a Hessian may be large


def gradient_sums(
    model: Model, parameters: Mapping[str, nn.Parameter], batches: Sequence[Batch], kind: str
) -> dict[str, Tensor]:
    """Sums over small batches of g^2, or of |w g|; g: gradient of the loss on labels that are drawn from the model."""
    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    with _only(model.module, parameters):
        for batch in batches:
            for pieces in zip(*(torch.split(x, model.wanted.batch or SMALL_BATCH) for x in batch.inputs), strict=True):
                loss = drawn_loss(model, tuple(pieces), generator)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                    if gradient is not None:
                        with torch.no_grad():
                            gradient = gradient.float()
                            total[name] += gradient.square() if kind == FISHER else (parameter * gradient).abs()
    return total


def drawn_loss(model: Model, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    """Cross-entropy on labels that are drawn from the model's own scores at temperature 4, a scalar, nats.

    Labels of data that the model was trained on would give it hardly a gradient.
    """
    scores = model.run(inputs)
    counted = counted_positions(Batch(inputs, None), scores)
    scores = scores.flatten(0, -2) if counted is None else scores[counted]
    if model.features:  # no labels could be drawn: the gradient of the outputs in a random direction
        return (scores * torch.randn(scores.shape, generator=generator)).sum(-1).mean()
    drawn = torch.multinomial((scores.detach() / TEMPERATURE).softmax(-1), 1, generator=generator)
    return nn.functional.cross_entropy(scores, drawn.squeeze(1))


@contextmanager
def _only(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let only these parameters have gradients."""
    kept = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    chosen = {id(parameter) for parameter in parameters.values()}
    for parameter, _ in kept:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, needed in kept:
            parameter.requires_grad_(needed)


def _sensitivities(model: Model, parameters: Mapping[str, nn.Parameter], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """How much the outputs change (model.apart) for a unit of squared error of each weight, [1, 1]: found by noise
    of 8 % of its root mean square, added to one weight at a time."""
    found = {}
    with torch.no_grad():
        before = [model.scores(batch) for batch in batches]
        for name, parameter in parameters.items():
            kept = parameter.detach().clone()
            generator = torch.Generator().manual_seed(seed_of(name))
            rms = kept.square().mean().sqrt()
            noise = torch.randn(kept.shape, generator=generator) * (NOISE * rms)
            parameter.add_(noise)
            changed = sum(
                apart(model, batch, model.scores(batch), scores) for batch, scores in zip(batches, before, strict=True)
            )
            parameter.copy_(kept)
            squared = float(noise.double().square().sum())
            found[name] = torch.tensor([[changed / len(batches) / squared if squared > 0 else 0.0]])
    return found
