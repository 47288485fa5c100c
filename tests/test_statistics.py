"""Files of statistics: what is in them is given as asked for, what cannot be is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli.errors import BrokenCheckpoint, UnsupportedCheckpoint, UsageError
from modelzip_cli.statistics import KINDS, StatisticsFile, metadata_of, shape_of
from modelzip_cli.tensors import F32, TensorSpec

LINEAR, CONV = TensorSpec("fc.weight", F32, (6, 4)), TensorSpec("conv.weight", F32, (5, 3, 2, 2))
SHAPES = {"second_moment": (1, 4), "hessian": (4, 4), "fisher": (6, 4), "taylor": (6, 4), "sensitivity": (1, 1)}


@pytest.fixture
def written(tmp_path):
    """A file of these tensors, open."""

    def write(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> StatisticsFile:
        path = tmp_path / "s.safetensors"
        save_file(tensors, path, metadata)
        return StatisticsFile(path)

    return write


def test_each_kind_has_the_shape_of_the_matrix_that_a_weight_is():
    assert {kind: shape_of(LINEAR, kind) for kind in KINDS} == SHAPES
    assert shape_of(CONV, "hessian") == (12, 12)
    assert shape_of(CONV, "fisher") == (5, 12)
    assert shape_of(TensorSpec("experts", F32, (3, 10, 64)), "second_moment") == (1, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_read_as_float32(written, dtype):
    values = torch.arange(24, dtype=dtype).reshape(6, 4) / 8
    found = written({"fc.weight:fisher": values})
    assert found.has(LINEAR, "fisher")
    assert found.read(LINEAR, "fisher").dtype == np.float32
    assert (found.read(LINEAR, "fisher") == values.float().numpy()).all()
    assert (found.read(LINEAR, "fisher", 2, 5) == values[2:5].float().numpy()).all()
    assert found.read(LINEAR, "fisher", 3, 3).shape == (0, 4)


def test_a_statistic_may_have_the_shape_of_its_weight_or_none_at_all(written):
    moments = torch.rand(5, 3, 2, 2)
    found = written(
        {
            "conv.weight:taylor": moments,
            "fc.weight:sensitivity": torch.tensor(3.0),
            "fc.weight:second_moment": torch.ones(4),
        }
    )
    assert (found.read(CONV, "taylor") == moments.reshape(5, 12).numpy()).all()
    assert found.read(LINEAR, "sensitivity").tolist() == [[3.0]]
    assert found.read(LINEAR, "second_moment").shape == (1, 4)
    assert not found.has(CONV, "fisher")
    assert found.kinds == ("second_moment", "taylor", "sensitivity")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("fisher", torch.ones(6, 5)),
        ("hessian", torch.ones(6, 4)),
        ("second_moment", torch.ones(6)),
        ("sensitivity", torch.ones(2)),
        ("taylor", torch.ones(6, 4, dtype=torch.int32)),
    ],
)
def test_what_belongs_to_another_weight_is_refused(written, kind, value):
    with pytest.raises(UsageError, match=rf"s\.safetensors: fc\.weight:{kind} is .*, for a weight \[6, 4\]") as refused:
        written({f"fc.weight:{kind}": value}).has(LINEAR, kind)
    assert str(refused.value).endswith(f"f32 {[*SHAPES[kind]]}: are these the statistics of another model?")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e300])
def test_values_that_cannot_be_are_refused_by_name(written, kind, value):
    values = torch.ones(SHAPES[kind], dtype=torch.float64)
    values[0, 0] = value
    found = written({f"fc.weight:{kind}": values})
    if kind == "hessian" and value == -1.0:
        assert found.read(LINEAR, kind)[0, 0] == -1
        return
    with pytest.raises(BrokenCheckpoint, match=rf"s\.safetensors: fc\.weight:{kind} holds values that it cannot have"):
        found.read(LINEAR, kind)


def test_values_are_looked_at_when_they_are_asked_for(written):
    values = torch.ones(6, 4)
    values[5, 1] = -1
    found = written({"fc.weight:fisher": values})
    assert (found.read(LINEAR, "fisher", 0, 5) == 1).all()
    with pytest.raises(BrokenCheckpoint):
        found.read(LINEAR, "fisher", 5, 6)


def test_a_file_without_any_statistic_is_refused(written):
    with pytest.raises(UnsupportedCheckpoint) as refused:
        written({"fc.weight": torch.ones(6, 4), "fc.weight:hessians": torch.ones(4, 4)})
    assert str(refused.value).endswith(
        "holds no statistics, which are called WEIGHT:KIND, with a kind of second_moment, hessian, fisher, taylor, "
        "sensitivity"
    )


def test_what_is_required_and_missing_is_named_with_what_to_do(written):
    found = written({"fc.weight:fisher": torch.ones(6, 4)})
    other, control = TensorSpec("b", F32, (6, 4)), TensorSpec("a\x1b[1m", F32, (6, 4))
    found.require([LINEAR], ["fisher"])
    found.require([], ["taylor"])
    label = found.label
    for specs, kind, message in (
        (
            [LINEAR, other],
            "taylor",
            f"{label}: holds no taylor of these weights; prune --criterion taylor writes it with --data and "
            "--save-statistics",
        ),
        ([LINEAR, other], "fisher", f"{label}: holds no fisher of b: leave it as it is with --set 'b=keep'"),
        (
            [LINEAR, control, other],
            "fisher",
            f"{label}: holds no fisher of a\\x1b[1m and 1 more: leave it as it is with --set 'a\\x1b[1m=keep'",
        ),
    ):
        with pytest.raises(UsageError) as refused:
            found.require(specs, [kind])
        assert str(refused.value) == message


def test_what_a_file_says_of_itself(written):
    found = written({"fc.weight:fisher": torch.ones(6, 4)}, dict(metadata_of(512, "train.npz", "graph")))
    assert (found.kinds, len(found.sha256)) == (("fisher",), 64)
