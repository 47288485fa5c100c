from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from train import DigitsCNN

from modelzip_cli.errors import UsageError
from modelzip_cli.running.channels import find_channels
from modelzip_cli.running.cutting import cut
from modelzip_cli.running.features import Features
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.layers import find_stack, without
from modelzip_cli.running.losses import features_loss
from modelzip_cli.running.widths import choose
from tests.residual import Residual
from tests.running.graphs import graph_of, teacher_graph

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


def narrow(graph):
    """Half of its channels."""
    channels = find_channels(graph)
    return cut(graph, channels, choose(graph, channels, 0.5))


def shallow(graph):
    """Without the layer in the middle."""
    return without(graph, find_stack(graph, "net"), (1,))


def inside(graph):
    """The class with the weights of a graph, and a list of what its blocks will give."""
    module, found = Residual(layers=len(find_stack(graph, "net").numbers)), []
    module.load_state_dict(copy.deepcopy(graph.state_dict()))
    for block in module.blocks:
        block.register_forward_hook(lambda _, args, output: found.append(output))
    return module.train(graph.training), found


def test_a_student_without_layers_is_compared_block_by_block():
    teacher = teacher_graph()
    student = shallow(teacher)
    features = Features(teacher, student, (X,), "net", 0)
    assert [*features.parameters()] == []  # of the same width: nothing to map
    set_training(student, True)
    (eager_teacher, theirs), (eager_student, ours) = inside(teacher), inside(student)
    torch.manual_seed(3)
    scores, wanted, distance = features.run((X,))
    torch.manual_seed(3)
    assert torch.equal(scores, eager_student(X))
    assert torch.equal(wanted, eager_teacher(X))
    # operations have the teacher's names: blocks 0 and 2 are left
    assert torch.equal(distance, features_loss(ours, [theirs[0], theirs[2]]))


def test_a_narrow_student_is_mapped_to_the_channels_of_the_teacher():
    teacher = teacher_graph()
    features = Features(teacher, narrow(teacher), (X,), "net", 0)
    assert [tuple(map_.shape) for map_ in features.parameters()] == [(16, 8)] * 3
    again = Features(teacher, narrow(teacher), (X,), "net", 0)
    assert all(torch.equal(a, b) for a, b in zip(features.parameters(), again.parameters(), strict=True))


def test_weights_and_statistics_that_learn_are_those_of_the_student():
    teacher = teacher_graph()
    student = narrow(teacher)
    before = student.state_dict()["blocks.0.norm.running_mean"].clone()
    features = Features(teacher, student, (X,), "net", 0)
    features.run((X,))[2].backward()
    assert float(student.get_parameter("stem.weight").grad.abs().sum()) > 0
    assert teacher.get_parameter("stem.weight").grad is None
    assert not torch.equal(student.state_dict()["blocks.0.norm.running_mean"], before)
    assert torch.equal(teacher.state_dict()["stem.weight"], teacher_graph().state_dict()["stem.weight"])


@cache
def _pictures():
    return graph_of(DigitsCNN((8, 16, 24)), torch.randn(2, 1, 12, 12))


def test_channels_of_pictures_are_mapped():
    x = torch.randn(3, 1, 12, 12)
    features = Features(_pictures(), narrow(_pictures()), (x,), "net", 0)
    assert {tuple(map_.shape) for map_ in features.parameters()} == {(8, 4), (16, 8), (24, 12)}
    assert torch.isfinite(features.run((x,))[2])


def test_networks_without_anything_in_common_are_refused():
    teacher = graph_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), X[:2])
    student = graph_of(nn.Linear(6, 2), X[:2])
    with pytest.raises(UsageError, match=r"net: --loss features: .* share no operation"):
        Features(teacher, student, (X,), "net", 0)
