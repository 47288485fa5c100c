from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from train import DigitsCNN, DocsLM

from modelzip_cli.errors import UsageError
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.layers import check_layers, choose_layers, find_stack, module_path, without
from tests.residual import Residual
from tests.running.graphs import graph_of, teacher_graph

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@cache
def _language_model():
    torch.manual_seed(2)
    return graph_of(DocsLM(16, layers=4, heads=2), torch.randint(90, (2, 8)), kind="tokens")


@cache
def _pictures():
    return graph_of(DigitsCNN((4, 8, 12)), torch.randn(2, 1, 12, 12))


def left_out(graph, kept):
    """The graph with the layers `kept` alone."""
    stack = find_stack(graph, "net")
    return without(graph, stack, check_layers(stack, kept, "net"))


@pytest.mark.parametrize("kept", [(0, 2), (0, 1), (1, 2), (2,), (0,)])
def test_a_graph_without_layers_is_the_class_built_with_fewer(kept):
    student, module = left_out(teacher_graph(), kept), Residual(layers=len(kept)).eval()
    module.load_state_dict(student.state_dict())  # the same names
    assert torch.equal(student(X), module(X))
    taught = teacher_graph().state_dict()
    for new, old in enumerate(kept):
        assert torch.equal(module.blocks[new].fc1.weight, taught[f"blocks.{old}.fc1.weight"])


@pytest.mark.parametrize("kept", [(0, 3), (0, 1, 3), (2,)])
def test_a_language_model_keeps_its_tie_and_its_outputs_bit_for_bit(kept):
    student, tokens = left_out(_language_model(), kept), torch.randint(90, (3, 8))
    module = DocsLM(16, layers=len(kept), heads=2).eval()
    module.load_state_dict(student.state_dict())
    assert student.get_parameter("head.weight") is student.get_parameter("tok.weight")
    assert torch.equal(student(tokens), module(tokens))


def test_what_is_left_is_trained_as_the_class_is():
    student, module = left_out(teacher_graph(), (0, 2)), Residual(layers=2)
    module.load_state_dict(student.state_dict())
    set_training(student, True)
    scores = []
    for network in (student, module):
        torch.manual_seed(4)
        scores.append(network(X))
        scores[-1].square().sum().backward()
    assert torch.equal(*scores)
    assert torch.equal(student.blocks.get_parameter("1.fc2.weight").grad, module.blocks[1].fc2.weight.grad)


def test_the_graph_that_layers_go_from_is_untouched():
    graph = teacher_graph()
    before, scores = copy.deepcopy(graph.state_dict()), graph(X)
    left_out(graph, (0,)).blocks.get_parameter("0.fc1.weight").data.fill_(0)
    assert torch.equal(graph(X), scores)
    assert [*graph.state_dict()] == [*before]


def test_modules_of_what_is_left_are_numbered_anew():
    student = left_out(teacher_graph(), (0, 2))
    assert {module_path(node) for node in student.graph.nodes if "fc1" in module_path(node)} == {
        "blocks.0.fc1",
        "blocks.1.fc1",
    }
    assert find_stack(student, "net").numbers == (0, 1)
    assert left_out(student, (1,))(X).shape == (5, 3)


class Step(nn.Module):
    """A layer beside a shortcut, with a buffer that is not saved."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.register_buffer("share", torch.tensor(0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.share * self.layer(x).relu()


class Steps(nn.Module):
    """These, one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList(layers), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def test_numbers_may_have_gaps_and_buffers_that_are_not_saved_stay_so():
    eager = Steps(Step(), Step(), nn.Identity(), Step(), Step())
    graph = graph_of(eager, X[:2])
    assert find_stack(graph, "net").numbers == (0, 1, 3, 4)
    student = left_out(graph, (0, 1, 4))
    fewer = Steps(Step(), Step(), Step())
    fewer.load_state_dict(student.state_dict())
    assert torch.equal(student(X), fewer(X))
    assert torch.equal(fewer.layers[2].layer.weight, eager.layers[4].layer.weight)


def test_layers_with_the_same_weights_can_go_while_one_of_them_stays():
    eager = Steps(*[Step()] * 4)
    graph = graph_of(eager, X[:2])
    stack = find_stack(graph, "net")
    able = [block.number for block in stack.blocks]
    assert len(able) == 3
    student = without(graph, stack, able[:2])
    eager.layers = eager.layers[:2]
    assert torch.equal(student(X), eager(X))
    with pytest.raises(UsageError, match=r"layer \d of layers cannot go: it .* weights that others use"):
        check_layers(stack, able, "net")


def test_layers_with_a_shortcut_around_them_stay():
    """Without one of them, what goes in would be counted twice."""

    class Around(Steps):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return self.last(x)

    stack = find_stack(graph_of(Around(nn.Linear(6, 6), nn.Linear(6, 6)), X[:2]), "net")
    assert stack.blocks == ()


class Stages(nn.Module):
    """Blocks in stages, as ConvNeXt has them; the stages change the width."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for inputs, outputs, depth in ((6, 8, 1), (8, 12, 3)):
            stage = nn.Module()
            stage.enter, stage.blocks = nn.Linear(inputs, outputs), nn.ModuleList(Step(outputs) for _ in range(depth))
            self.stages.append(stage)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage.enter(x)
            for block in stage.blocks:
                x = block(x)
        return x


def test_blocks_inside_of_stages_are_found():
    stack = find_stack(graph_of(Stages(), X[:2]), "net")
    assert (stack.name, stack.numbers) == ("stages.1.blocks", (0, 1, 2))
    assert [block.number for block in stack.blocks] == [0, 1, 2]


def test_blocks_that_change_the_shape_stay():
    stack = find_stack(_pictures(), "net.pt2")
    assert [block.number for block in stack.blocks] == [0]
    with pytest.raises(UsageError, match=r"net.pt2: layer 1 of blocks cannot go: it changes the shape"):
        check_layers(stack, (0, 2), "net.pt2")
    assert check_layers(stack, (1, 2), "net.pt2") == (0,)
    with pytest.raises(UsageError, match=r"of the 3 blocks blocks.N only 0 can go"):
        choose_layers(_pictures(), stack, 0.67, lambda _: 0.0, "net.pt2")


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((0, 7), "net: no layer 7: blocks has 0, 1, 2"),
        ((0, 1, 2), "net: layers=0,1,2 are all 3 of blocks"),
    ],
)
def test_layers_that_are_not_there_or_all_that_are(kept, message):
    with pytest.raises(UsageError, match=message):
        check_layers(find_stack(teacher_graph(), "net"), kept, "net")


def test_a_network_without_blocks_says_what_else_there_is():
    graph = graph_of(nn.Linear(6, 2), X[:2])
    with pytest.raises(UsageError, match=r"no repeated blocks.*--student width=S"):
        find_stack(graph, "net")


@pytest.mark.parametrize(("share", "gone"), [(0.5, (1, 2)), (0.75, (2,)), (0.25, (1, 2, 3)), (0.01, (1, 2, 3))])
def test_the_layers_go_that_matter_least_but_never_the_first(share, gone):
    cost = {1: 3.0, 2: 1.0, 3: 5.0}  # that of 0 is not even asked for
    graph = _language_model()
    weight = {graph.state_dict()[f"blocks.{n}.fc1.weight"].data_ptr(): n for n in range(4)}
    full = {n: graph.state_dict()[f"blocks.{n}.fc1.weight"] for n in range(4)}
    assert len(weight) == 4

    def loss(module):
        left = [module.state_dict()[f"blocks.{n}.fc1.weight"] for n in range(3)]
        (missing,) = (n for n, tensor in full.items() if not any(torch.equal(tensor, other) for other in left))
        return cost[missing]

    assert choose_layers(graph, find_stack(graph, "net"), share, loss, "net") == gone


def test_a_depth_that_leaves_all_is_refused():
    graph = _language_model()
    with pytest.raises(UsageError, match=r"depth=0.9 of 4 layers are all of them"):
        choose_layers(graph, find_stack(graph, "net"), 0.9, lambda _: 0.0, "net")
