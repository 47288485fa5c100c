"""Exported graphs of small networks, traced once and copied for each test."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from modelzip_cli.running.export import traced
from modelzip_cli.running.inputs import Wanted
from tests.teaching import make_teacher


def graph_of(module: nn.Module, *example: Tensor, **wanted: Any) -> GraphModule:
    """The graph of a network, in evaluation mode; axes of the input but the batch are fixed."""
    return traced(module.eval(), example, wanted=Wanted(shape=tuple(example[0].shape[1:]), **wanted))


@cache
def _teacher() -> GraphModule:
    return graph_of(make_teacher()[0], torch.randn(2, 6))


def teacher_graph() -> GraphModule:
    """That of the teacher of `tests/teaching.py`."""
    return copy.deepcopy(_teacher())
