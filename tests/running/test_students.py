from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modelzip_cli.errors import FileNotThere, ModelDoesNotRun, ModelzipError, Unreachable, UsageError, WrongArchitecture
from modelzip_cli.running.inputs import Wanted
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.model import Model
from modelzip_cli.running.student_file import student_bytes
from modelzip_cli.running.students import (
    StudentSpec,
    calibration,
    check_choices,
    make_student,
    parse_student,
    taylor_importance,
)
from tests.residual import Residual, Small
from tests.running.graphs import graph_of, teacher_graph
from tests.teaching import make_teacher, model_of, points, same_weights

NET = Path(__file__).parents[1] / "residual.py"
TRAIN = np.arange(160)
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("text", "ratio", "spec", "shown"),
    [
        (None, None, StudentSpec(width=0.5), "width=0.5"),
        (None, 4.0, StudentSpec(ratio=4.0), "ratio=4x"),
        ("width=0.34", None, StudentSpec(width=0.34), "width=0.34"),
        ("depth=0.5", None, StudentSpec(depth=0.5), "depth=0.5"),
        ("layers=4,0,2,2", None, StudentSpec(layers=(0, 2, 4)), "layers=0,2,4"),
        ("width=0.5,depth=0.25", None, StudentSpec(width=0.5, depth=0.25), "width=0.5,depth=0.25"),
        ("layers=0,2,width=0.5", None, StudentSpec(width=0.5, layers=(0, 2)), "width=0.5,layers=0,2"),
        ("depth=0.5", 8.0, StudentSpec(depth=0.5, ratio=8.0), "depth=0.5,ratio=8x"),
        ("net.py:Small", None, StudentSpec(arch="net.py:Small"), "net.py:Small"),
        ("small.pt2", None, StudentSpec(arch="small.pt2"), "small.pt2"),
    ],
)
def test_students_that_can_be_asked_for(text, ratio, spec, shown):
    found = parse_student(text, ratio, {})
    assert found == spec
    assert str(found) == shown
    assert found.is_cut == (spec.arch is None)


def test_arguments_are_for_a_network_with_a_name():
    assert str(parse_student("net.py:Small", None, {"width": 8})) == 'net.py:Small {"width": 8}'
    with pytest.raises(UsageError, match="--student-args are for a class"):
        parse_student("width=0.5", None, {"width": 8})


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path):
    (tmp_path / "width=0.5").touch()
    assert parse_student(str(tmp_path / "width=0.5"), None, {}).arch is not None


@pytest.mark.parametrize(
    ("text", "ratio", "message"),
    [
        ("width=1", None, "write a share between 0 and 1"),
        ("width=0", None, "write a share between 0 and 1"),
        ("width=nan", None, "write a share between 0 and 1"),
        ("width=half", None, "write a share between 0 and 1"),
        ("width=0.5,0.25", None, "write a share between 0 and 1"),
        ("width=0.5,width=0.25", None, "write a share between 0 and 1"),
        ("depth=2", None, "write a share between 0 and 1"),
        ("layers=", None, "write the layers to keep as layers=0,2,4"),
        ("layers=0,-1", None, "write the layers to keep as layers=0,2,4"),
        ("layers=0,two", None, "write the layers to keep as layers=0,2,4"),
        ("layers=٣", None, "write the layers to keep as layers=0,2,4"),
        ("widht=0.5", None, "no 'widht'.*did you mean 'width'"),
        ("width=0.5,heads=0.5", None, "no 'heads'; there are width=SHARE, depth=SHARE"),
        ("depth=0.5,layers=0,2", None, "depth and layers exclude each other"),
        ("width=0.5", 4.0, "--ratio finds the width"),
        ("net.py:Small", 4.0, "--ratio cuts a student from the teacher"),
    ],
)
def test_students_that_make_no_sense(text, ratio, message):
    with pytest.raises(UsageError, match=message):
        parse_student(text, ratio, {})


@pytest.mark.parametrize(("option", "choices"), [("--kind", 0), ("--score", 1), ("--loss", 2)])
def test_a_choice_that_is_none_says_which_there_are(option, choices):
    words = ["strong", "l2", "soft"]
    check_choices(*words)
    words[choices] += "s"
    with pytest.raises(UsageError, match=f"{option} '{words[choices]}': there are .*did you mean"):
        check_choices(*words)


@pytest.fixture
def teacher():
    """The teacher as an exported graph."""
    return model_of(teacher_graph(), is_graph=True)


def made(teacher: Model, spec: StudentSpec, kind: str = "strong", **options):
    """A student, made with some of the data."""
    data = points()
    values = {"score": "l2", "network": Network(), "seed": 0, "batches": lambda: calibration(data, TRAIN, 0, teacher)}
    return make_student(teacher, spec, kind=kind, **(values | options))


def test_a_strong_student_has_slices_of_the_teacher(teacher):
    student = made(teacher, StudentSpec(width=0.5))
    ours, theirs = student.model.module.state_dict(), teacher.module.state_dict()
    assert ours["stem.weight"].shape == (8, 6)
    for row in ours["stem.weight"]:
        assert any(torch.equal(row, other) for other in theirs["stem.weight"])
    assert student.model.parameters < teacher.parameters / 3
    assert not torch.equal(ours["blocks.0.norm.running_mean"], torch.zeros(8))
    assert student.teacher_graph is not None
    assert "4 of 5 groups of channels were cut to 0.5" in student.notes[0]


def test_a_weak_student_has_the_shapes_alone(teacher):
    strong, weak = (made(teacher, StudentSpec(width=0.5), kind).model.module for kind in ("strong", "weak"))
    ours, theirs = weak.state_dict(), strong.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    rows = teacher.module.state_dict()["stem.weight"]
    assert not any(torch.equal(row, other) for row in ours["stem.weight"] for other in rows)
    assert torch.equal(ours["blocks.0.norm.running_mean"], torch.zeros(8))
    assert same_weights(weak, made(teacher, StudentSpec(width=0.5), "weak").model.module)
    assert not same_weights(weak, made(teacher, StudentSpec(width=0.5), "weak", seed=1).model.module)


def test_running_statistics_of_a_strong_student_are_those_of_the_data(teacher):
    student = made(teacher, StudentSpec(width=0.5)).model.module
    batches = calibration(points(), TRAIN, 0, teacher)
    stem = nn.functional.linear(torch.cat([b.inputs[0] for b in batches]), *(student.stem.weight, student.stem.bias))
    torch.testing.assert_close(student.state_dict()["blocks.0.norm.running_mean"], stem.relu().mean(0))


def test_the_teacher_is_left_alone(teacher):
    before = teacher_graph()
    for spec in (StudentSpec(width=0.5), StudentSpec(depth=0.5)):
        for kind in ("strong", "weak"):
            student = made(teacher, spec, kind).model
            assert not student.module.training
            assert all(parameter.requires_grad for parameter in student.module.parameters())
    assert same_weights(teacher.module, before)
    assert torch.equal(teacher.module(X), before(X))


def test_layers_and_width_are_cut_together(teacher):
    student = made(teacher, StudentSpec(width=0.5, layers=(0, 2)))
    module = Residual(8, layers=2).eval()
    module.load_state_dict(student.model.module.state_dict())
    assert torch.equal(module(X), student.model.module(X))
    assert student.notes[0] == "dropped blocks.1 of 3 layers"
    assert "cut to 0.5" in student.notes[1]


def test_the_layer_goes_without_which_the_outputs_change_least(teacher):
    with torch.no_grad():
        for name, scale in (("0", 1.0), ("1", 4.0), ("2", 0.01)):
            teacher.module.get_submodule(f"blocks.{name}.fc2").weight.mul_(scale)
    assert made(teacher, StudentSpec(depth=0.67)).notes == ("dropped blocks.2 of 3 layers",)


@pytest.mark.parametrize("ratio", [1.5, 3.0, 8.0])
def test_a_ratio_is_reached_and_not_by_far(teacher, ratio):
    student = made(teacher, StudentSpec(ratio=ratio)).model
    assert 0.6 * teacher.parameters / ratio < student.parameters <= teacher.parameters / ratio


def test_a_ratio_that_cannot_be_reached_says_what_can_be(teacher):
    with pytest.raises(Unreachable, match=r"teacher.pt2: 3 parameters cannot be reached.*the fewest are \d+") as caught:
        made(teacher, StudentSpec(ratio=1000.0))
    assert caught.value.exit_code == 3


def test_a_network_whose_channels_cannot_be_cut_says_why():
    teacher = model_of(graph_of(nn.Linear(6, 3), X[:2]), is_graph=True)
    with pytest.raises(UsageError, match="no channels of this network can be cut"):
        made(teacher, StudentSpec(width=0.5))


def test_a_teacher_that_is_no_graph_is_exported_first():
    net = make_teacher()[0]
    student = made(model_of(net), StudentSpec(layers=(0, 2)))
    assert student.model.is_graph
    assert torch.equal(student.model.module.state_dict()["blocks.1.fc1.weight"], net.blocks[2].fc1.weight)


def test_a_teacher_that_cannot_be_exported_says_what_to_do():
    class Branches(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -x[:, :3]

    with pytest.raises(ModelDoesNotRun, match=r"teacher.pt2: torch.export cannot.*--student file.py:Small"):
        made(model_of(Branches()), StudentSpec(width=0.5))


def test_data_with_nan_are_no_reason_for_a_crash(teacher):
    data = points()
    data.x[:] = np.nan
    with pytest.raises(ModelDoesNotRun, match=r"teacher.pt2: the model gives NaN"):
        made(teacher, StudentSpec(width=0.5), batches=lambda: calibration(data, TRAIN, 0, teacher))


def test_gradients_choose_other_channels_than_weights(teacher):
    by_weights = made(teacher, StudentSpec(width=0.5)).model.module.stem.weight
    by_gradients = made(teacher, StudentSpec(width=0.5), score="taylor").model.module.stem.weight
    assert by_gradients.shape == by_weights.shape
    assert not torch.equal(by_gradients, by_weights)


def test_importance_is_summed_without_signs_over_small_batches(teacher):
    batches = calibration(points(), TRAIN, 0, teacher)
    found = taylor_importance(teacher.module, teacher, batches)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: parameter.shape for name, parameter in teacher.module.named_parameters()
    }
    generator, total = torch.Generator().manual_seed(0), 0
    weight = teacher.module.get_parameter("head.weight")
    for batch in batches:
        for x in batch.inputs[0].split(8):
            scores = teacher.module(x)
            drawn = torch.multinomial((scores.detach() / 4).softmax(-1), 1, generator=generator).squeeze(1)
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(scores, drawn), weight)
            total = total + (weight.detach() * gradient).abs()
    torch.testing.assert_close(found["head.weight"], total)


# --- students that --student names ------------------------------------------------------------------------------------


def test_a_class_starts_as_it_comes(teacher):
    student = made(teacher, StudentSpec(arch=f"{NET}:Small", arguments={"hidden": 12}), "weak")
    torch.manual_seed(0)
    assert same_weights(student.model.module, Small(12))
    assert (student.notes, student.teacher_graph) == ((), None)


def test_a_strong_class_gets_what_has_the_same_name_and_shape(teacher):
    student = made(teacher, StudentSpec(arch=f"{NET}:Residual", arguments={"layers": 1}))
    ours = student.model.module.state_dict()
    assert student.notes == (f"{len(ours)} of {len(ours)} tensors begin as those of the teacher",)
    assert all(torch.equal(tensor, teacher.module.state_dict()[name]) for name, tensor in ours.items())


def test_a_strong_class_with_nothing_in_common_is_refused(teacher):
    with pytest.raises(UsageError, match=r"no weight has the name and shape.*--kind weak"):
        made(teacher, StudentSpec(arch=f"{NET}:Small"))


@pytest.mark.parametrize(
    ("arch", "error", "message"),
    [
        ("nosuch.pt2", FileNotThere, "--student nosuch.pt2: does not exist"),
        ("nosuch.safetensors", FileNotThere, "--student nosuch.safetensors: does not exist"),
        ("nosuch.py:Small", ModelzipError, "nosuch.py: no such file"),
        (f"{NET}:Smal", UsageError, "did you mean 'Small'"),
        ("0.5", UsageError, "names no network"),
    ],
)
def test_students_that_do_not_exist(teacher, arch, error, message):
    with pytest.raises(error, match=message):
        made(teacher, StudentSpec(arch=arch), "weak")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """narrow.safetensors and wide.safetensors hold weights of the class, small.pt2 and teacher.pt2 their graphs too."""
    folder = tmp_path_factory.mktemp("students")
    for name, module in (("narrow", Residual(8)), ("wide", Residual())):
        content = student_bytes(model_of(module), ".safetensors", {}, points().batch(TRAIN[:2]))
        (folder / f"{name}.safetensors").write_bytes(content)
    for name, module in (("small", Residual(4, layers=1)), ("teacher", make_teacher()[0])):
        content = student_bytes(model_of(module), ".pt2", {}, points().batch(TRAIN[:2]))
        (folder / f"{name}.pt2").write_bytes(content)
    return folder


def test_a_graph_is_a_student(teacher, files):
    student = made(teacher, StudentSpec(arch=str(files / "small.pt2")), "weak")
    assert student.model.parameters == open_model(files / "small.pt2", Network()).parameters
    assert same_weights(student.model.module, open_model(files / "small.pt2", Network()).module)


def test_a_file_of_weights_is_a_student_of_the_class_of_the_teacher(teacher, files):
    network = Network(arch=f"{NET}:Residual", arguments={"width": 16})
    wide = made(teacher, StudentSpec(arch=str(files / "wide.safetensors")), "weak", network=network)
    assert wide.model.parameters == teacher.parameters
    spec = StudentSpec(arch=str(files / "narrow.safetensors"), arguments={"width": 8})
    narrow = made(teacher, spec, "weak", network=network)
    assert narrow.model.module.stem.weight.shape == (8, 6)


def test_a_file_of_weights_is_a_student_of_the_graph_of_the_teacher(files):
    teacher = open_model(files / "teacher.pt2", Network())
    student = made(teacher, StudentSpec(arch=str(files / "wide.safetensors")), "weak")
    assert same_weights(student.model.module, open_model(files / "wide.safetensors", Network(f"{NET}:Residual")).module)
    with pytest.raises(WrongArchitecture, match=r"narrow.safetensors: does not fit --arch .*teacher.pt2"):
        made(teacher, StudentSpec(arch=str(files / "narrow.safetensors")), "weak")


# --- data for statistics, files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sizes"), [(160, [64, 64]), (100, [50, 50]), (5, [2, 2]), (3, [2]), (1, [1])])
def test_statistics_are_of_two_batches_where_the_data_allow_it(count, sizes):
    batches = calibration(points(), np.arange(count), 0, model_of(make_teacher()[0]))
    assert [len(batch.inputs[0]) for batch in batches] == sizes


def test_a_fixed_batch_is_filled():
    teacher = replace(model_of(make_teacher()[0]), wanted=Wanted(shape=(6,), batch=8))
    assert [len(b.inputs[0]) for b in calibration(points(), np.arange(5), 0, teacher)] == [8]
    assert [len(b.inputs[0]) for b in calibration(points(), np.arange(20), 0, teacher)] == [8, 8]


def test_a_file_of_weights_says_what_it_was_made_with(tmp_path):
    student, batch = model_of(Residual(8)), points().batch(TRAIN[:2])
    recipe = {"arch": "net.py:Net", "arch_args": {"width": 8}}
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"student{suffix}"
        path.write_bytes(student_bytes(student, suffix, recipe, batch))
        with pytest.raises(ModelzipError, match=r"made with --arch net.py:Net --arch-args '\{\"width\": 8\}'"):
            open_model(path, Network())
        found = open_model(path, Network(f"{NET}:Residual", {"width": 8}))
        assert same_weights(found.module, student.module)
    saved = torch.load(tmp_path / "student.pth", weights_only=True)
    assert json.loads(saved["modelzip.student"]) == recipe
