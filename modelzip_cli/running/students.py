"""Students: what `--student` and `--ratio` mean, and how a small model is made from them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from modelzip_cli.errors import FileNotThere, ModelDoesNotRun, UnsupportedCheckpoint, UsageError, did_you_mean, inert
from modelzip_cli.output import SUFFIXES
from modelzip_cli.running.architecture import build
from modelzip_cli.running.batchnorm import reestimate
from modelzip_cli.running.calibrate import gradient_sums
from modelzip_cli.running.channel_trace import OUTPUT
from modelzip_cli.running.channels import find_channels
from modelzip_cli.running.cutting import CannotCut, Cut, cut_checked
from modelzip_cli.running.export import traced
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.initialise import initialise
from modelzip_cli.running.inputs import Batch, Examples, Rows, Wanted, order
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.layers import check_layers, choose_layers, find_stack, without
from modelzip_cli.running.losses import LOSSES, soft_loss
from modelzip_cli.running.model import Model, wanted_by
from modelzip_cli.running.widths import choose, width_for
from modelzip_cli.statistics import TAYLOR

DEFAULT = "width=0.5"
KINDS = ("strong", "weak")
SCORES = ("l2", "taylor")
CUTS = "width=SHARE, depth=SHARE, layers=0,2,4"
CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 8


def check_choices(kind: str, score: str, loss: str) -> None:
    """Refuse words that are none of those to choose from. Raises UsageError."""
    for option, word, known in (("--kind", kind, KINDS), ("--score", score, SCORES), ("--loss", loss, LOSSES)):
        if word not in known:
            raise UsageError(f"{option} {inert(word)!r}: there are {', '.join(known)}{did_you_mean(word, known)}")


@dataclass(frozen=True)
class StudentSpec:
    """How a student is made: cut from the teacher by `width`, `depth` or `layers`, or down to 1/`ratio` of its
    parameters; or else what `arch` names, which is any form of --arch or a checkpoint that exists."""

    width: float | None = None
    depth: float | None = None
    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    arch: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether it is made from the teacher's graph."""
        return self.arch is None

    def __str__(self) -> str:
        if self.arch is not None:
            return self.arch + (f" {json.dumps(dict(self.arguments))}" if self.arguments else "")
        parts = [f"width={self.width:g}"] if self.width is not None else []
        parts += [f"depth={self.depth:g}"] if self.depth is not None else []
        parts += [f"layers={','.join(map(str, self.layers))}"] if self.layers is not None else []
        parts += [f"ratio={self.ratio:g}x"] if self.ratio is not None else []
        return ",".join(parts)


def parse_student(text: str | None, ratio: float | None, arguments: Mapping[str, Any]) -> StudentSpec:
    """Read --student and --ratio. Raises UsageError."""
    if text is not None and ("=" not in text or Path(text).exists()):
        if ratio is not None:
            raise UsageError("--ratio cuts a student from the teacher; --student names one that exists: choose one")
        return StudentSpec(arch=text, arguments=arguments)
    if arguments:
        raise UsageError("--student-args are for a class or function that --student names")
    if text is None:
        return StudentSpec(ratio=ratio) if ratio is not None else StudentSpec(width=float(DEFAULT.partition("=")[2]))
    values: dict[str, list[str]] = {}
    name = ""
    for item in text.split(","):  # the numbers of layers=0,2,4 belong to what came before them
        key, separator, value = item.partition("=")
        name = key if separator else name
        values.setdefault(name, []).append(value if separator else key)
    spec = StudentSpec(
        _share(values.pop("width", None), text),
        _share(values.pop("depth", None), text),
        _numbers(values.pop("layers", None), text),
        ratio,
    )
    if values:
        word = next(iter(values))
        hint = did_you_mean(word, ("width", "depth", "layers"))
        raise UsageError(f"--student {inert(text)!r}: no {inert(word)!r}; there are {CUTS}{hint}")
    if spec.depth is not None and spec.layers is not None:
        raise UsageError(f"--student {inert(text)!r}: depth and layers exclude each other")
    if spec.width is not None and ratio is not None:
        raise UsageError("--ratio finds the width: leave width away")
    return spec


def _share(texts: list[str] | None, whole: str) -> float | None:
    if texts is None:
        return None
    try:
        share = float(texts[0]) if len(texts) == 1 else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UsageError(f"--student {inert(whole)!r}: write a share between 0 and 1, such as width=0.5")
    return share


def _numbers(texts: list[str] | None, whole: str) -> tuple[int, ...] | None:
    if texts is None:
        return None
    if not all(text.isascii() and text.isdigit() and len(text) < 7 for text in texts):
        raise UsageError(f"--student {inert(whole)!r}: write the layers to keep as layers=0,2,4; the first is 0")
    return tuple(sorted({int(text) for text in texts}))


@dataclass(frozen=True)
class Student:
    """A student before it learns. `notes`: what the user should know of how it was made; `teacher_graph`: what it was
    cut from, whose operations have the same names, or None."""

    model: Model
    notes: tuple[str, ...] = ()
    teacher_graph: GraphModule | None = None


def make_student(
    teacher: Model,
    spec: StudentSpec,
    *,
    kind: str,
    score: str,
    network: Network,
    batches: Callable[[], list[Batch]],
    seed: int,
) -> Student:
    """Build the student of `spec`. `batches`: some training data, for statistics and for what layers are worth.

    strong: it has the teacher's weights, as far as they fit. weak: a cut one gets fresh weights; a class that --student
    names starts as it comes, a file with the weights in it. Raises UsageError where the teacher has no such part.
    """
    torch.manual_seed(seed)
    if spec.arch is not None:
        return _named(teacher, spec, kind, network)
    first = batches()[0]
    graph = graph_of(teacher, first)
    module, notes = graph, []
    if spec.depth is not None or spec.layers is not None:
        stack = find_stack(module, teacher.label)
        gone = (
            choose_layers(module, stack, spec.depth, _damage(teacher, batches()[:4]), teacher.label)
            if spec.depth is not None
            else check_layers(stack, spec.layers or (), teacher.label)
        )
        module = without(module, stack, gone)
        dropped = ", ".join(f"{inert(stack.name)}.{number}" for number in gone)
        notes.append(f"dropped {dropped} of {len(stack.numbers)} layers")
    if spec.width is not None or spec.ratio is not None:
        module, more = _narrow(teacher, spec, module, score, batches)
        notes += more
    if kind == "weak":
        initialise(module, seed)
    else:
        reestimate(module, [batch.inputs for batch in batches()])
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    set_training(module, False)
    model = replace(teacher, module=module, rung=f"{spec} of {teacher.label}", bytes=0, is_graph=True, recipe=None)
    return Student(model, tuple(notes), graph)


def calibration(examples: Examples, train: Rows, seed: int, model: Model) -> list[Batch]:
    """Some batches of the training data, for statistics: at most 512 examples."""
    size = model.wanted.batch or min(CALIBRATION_BATCH, max(2, len(train) // 2))  # statistics need two batches
    chosen = train[order(len(train), seed, "calibration")]
    if model.wanted.batch is not None and len(chosen) < size:
        chosen = np.resize(chosen, size)  # a fixed batch has to be filled
    starts = range(0, max(1, len(chosen) - size + 1), size)
    return [examples.batch(chosen[start : start + size]) for start in [*starts][:CALIBRATION_BATCHES]]


def graph_of(model: Model, batch: Batch) -> GraphModule:
    """The exported graph of a model, a copy; exported here where it is none yet. Raises ModelDoesNotRun."""
    if isinstance(model.module, GraphModule):
        return copy.deepcopy(model.module)
    try:
        return traced(model.module, example_of(batch, model.wanted), wanted=model.wanted)
    except UnsupportedCheckpoint as error:
        raise ModelDoesNotRun(f"{model.label}: {error}: name a smaller network with --student file.py:Small") from error


def example_of(batch: Batch, wanted: Wanted) -> tuple[Tensor, ...]:
    """An input for torch.export: of 2 examples where the batch is open, since one would freeze that axis, and of half
    the tokens where their number is, since all would freeze that."""
    rows = torch.arange(wanted.batch or 2) % len(batch.inputs[0])
    inputs = [x[rows] for x in batch.inputs]
    is_open = wanted.kind == "tokens" and (wanted.shape is None or wanted.shape[:1] == (None,))
    if is_open and inputs[0].ndim == 2:
        inputs = [x[:, : max(2, x.shape[1] // 2)] for x in inputs]
    return tuple(x.contiguous() for x in inputs)


def _damage(teacher: Model, batches: list[Batch]) -> Callable[[GraphModule], float]:
    """How far a model without something is from the teacher: KL in nats, over some batches."""
    with torch.inference_mode():
        wanted = [teacher.scores(batch) for batch in batches]

    def damage(module: GraphModule) -> float:
        model = replace(teacher, module=module)
        with torch.inference_mode():
            return sum(
                float(soft_loss(model.scores(batch), scores, 1.0))
                for batch, scores in zip(batches, wanted, strict=True)
            )

    return damage


def _narrow(
    teacher: Model, spec: StudentSpec, module: GraphModule, score: str, batches: Callable[[], list[Batch]]
) -> tuple[GraphModule, list[str]]:
    """Cut channels, so that the width or the number of parameters is what was asked for."""
    try:
        channels = find_channels(module)
    except ModelDoesNotRun as error:
        raise ModelDoesNotRun(f"{teacher.label}: {error}") from error
    if not channels.groups:
        reasons = "; ".join(f"{inert(frozen.name)}: {frozen.reason}" for frozen in channels.frozen[:3])
        raise UsageError(f"{teacher.label}: no channels of this network can be cut ({reasons}): try depth=SHARE")
    importance = taylor_importance(module, teacher, batches()) if score == "taylor" else None
    width = spec.width
    if width is None:
        assert spec.ratio is not None
        width = width_for(module, channels, int(teacher.parameters / spec.ratio), label=teacher.label)

    def cut_to(share: float) -> Cut:
        keep = choose(module, channels, share, importance=importance)
        try:
            return cut_checked(module, channels, keep, batches()[0].inputs)
        except CannotCut as error:
            raise ModelDoesNotRun(f"{teacher.label}: {error}") from error

    made = cut_to(width)
    if spec.ratio is not None and len(made.channels.groups) < len(channels.groups):  # what stays whole counts too
        channels = made.channels
        width = width_for(module, channels, int(teacher.parameters / spec.ratio), label=teacher.label)
        made = cut_to(width)
    return made.module, _notes(made, width)


def _notes(made: Cut, width: float) -> list[str]:
    """What became of the groups of channels."""
    count = len(made.channels.groups) + len(made.channels.frozen)
    told = f"{len(made.keep)} of {count} groups of channels were cut to {width:.3g}"
    if made.exact:
        told += f"; the cut model gives what the masked one gives, within {made.difference:.1g}"
    notes = [told]
    frozen = [one for one in made.channels.frozen if one.reason != OUTPUT]
    if frozen:
        shown = "; ".join(f"{inert(one.name, longest=60)}: {inert(one.reason, longest=120)}" for one in frozen[:3])
        stay = "1 group stays as it is" if len(frozen) == 1 else f"{len(frozen)} groups stay as they are"
        notes.append(f"{stay}: {shown}" + ("; ..." if len(frozen) > 3 else ""))
    return notes


def taylor_importance(module: GraphModule, teacher: Model, batches: list[Batch]) -> dict[str, Tensor]:
    """sum over small batches of |w dL/dw|, by name of the weight, in its shape; L: loss on labels that the model draws.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, arXiv:1906.10771, equation 8.
    """
    return gradient_sums(replace(teacher, module=module), dict(module.named_parameters()), batches, TAYLOR)


def _named(teacher: Model, spec: StudentSpec, kind: str, network: Network) -> Student:
    """A class, function, graph, directory or file that --student names."""
    assert spec.arch is not None
    path = Path(spec.arch)
    notes: tuple[str, ...] = ()
    if path.exists() and path.suffix != ".py":
        model = open_model(path, _network_of(path, spec, teacher, network))
        is_teachers = kind == "strong" and model.parameters != teacher.parameters
    elif path.suffix in (".pt2", *SUFFIXES):
        raise FileNotThere(f"--student {inert(spec.arch)}: does not exist")
    else:
        module = build(spec.arch, spec.arguments)
        model = Model(module, inert(spec.arch), inert(spec.arch), wanted_by(module), 0)
        is_teachers = kind == "strong"
    if is_teachers:
        notes = (_copy_weights(teacher, model, spec),)
    model = replace(model, module=copy.deepcopy(model.module), bytes=0)
    set_training(model.module, False)
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    return Student(model, notes)


def _network_of(path: Path, spec: StudentSpec, teacher: Model, network: Network) -> Network:
    """What runs a checkpoint that --student names: itself, the teacher's --arch with other arguments, its graph."""
    if path.is_dir() or path.suffix == ".pt2":
        return Network()
    if network.arch is None and teacher.is_graph:
        return Network(arch=teacher.label)
    return replace(network, arguments=spec.arguments or network.arguments)


def _copy_weights(teacher: Model, student: Model, spec: StudentSpec) -> str:
    """Let the student begin with every tensor of the teacher that has the same name and shape; say how many."""
    theirs, ours = teacher.module.state_dict(), student.module.state_dict()
    common = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    if not any(name in dict(student.module.named_parameters()) for name in common):
        raise UsageError(
            f"--student {inert(str(spec))}: no weight has the name and shape of one of the teacher: --kind weak learns "
            f"from its outputs alone, and {CUTS} cut a student from the teacher"
        )
    student.module.load_state_dict(common, strict=False)
    return f"{len(common)} of {len(ours)} tensors begin as those of the teacher"
