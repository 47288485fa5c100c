"""Statistics against direct computations, and the file that they are in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor, nn

from modelzip_cli.errors import ModelDoesNotRun, OutputExists
from modelzip_cli.running import calibrate as module
from modelzip_cli.running.calibrate import SMALL_BATCH, TEMPERATURE, calibrate
from modelzip_cli.running.inputs import Batch, Wanted
from modelzip_cli.running.model import Model, apart
from modelzip_cli.statistics import FISHER, HESSIAN, KINDS, SECOND_MOMENT, SENSITIVITY, TAYLOR, StatisticsFile, shape_of
from modelzip_cli.tensors import F32, TensorSpec
from tests.running.networks import Net, noise


class Small(nn.Module):
    """[batch, 2, 6, 6] -> scores [batch, 3]: a convolution, a depthwise one, a layer that is scaled, and the last."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.depth = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4)
        self.side, self.head = nn.Linear(64, 5), nn.Linear(5, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """As layers follow each other."""
        hidden = self.depth(self.conv(x).relu()).flatten(1)
        scores: Tensor = self.head(torch.ones(len(x), 5) + self.scale * self.side(hidden))
        return scores


LAYERS = ["conv.weight", "side.weight", "head.weight"]


def small(scale: float = 1.0) -> Model:
    """The same model each time."""
    torch.manual_seed(0)
    return Model(Small(scale).eval(), "small", "a test", Wanted(), 0)


def batches(*shape: int, sizes: tuple[int, ...] = (20, 16)) -> list[Batch]:
    """Normal numbers."""
    return [Batch((noise(size, *shape) + 0.1 * place,), None) for place, size in enumerate(sizes)]


PICTURES = batches(2, 6, 6)


def specs_of(model: Model, prefix: str = "") -> list[TensorSpec]:
    """The weights of a model as a checkpoint has them."""
    parameters = model.module.named_parameters()
    return [TensorSpec(prefix + name, F32, tuple(one.shape)) for name, one in parameters if one.ndim > 1]


def taken(model: Model, path: Path, *kinds: str, data: list[Batch] = PICTURES, **more: Any) -> dict[str, np.ndarray]:
    """The arrays of the file that is made."""
    specs = more.pop("specs", None) or specs_of(model)
    calibrate(model, specs, data, kinds, path, **{"replace": False, "data": "points.npz"} | more)
    return load_file(path)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "s.safetensors"


def rows_of(model: Model, batch: Batch) -> dict[str, Tensor]:
    """The inputs of its layers, found without watching, float64 [positions, columns]."""
    net, x = model.module, batch.inputs[0]
    with torch.no_grad():
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        patches = padded.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 18)
        hidden = net.depth(net.conv(x).relu()).flatten(1)
        rows = {"conv.weight": patches, "side.weight": hidden, "head.weight": 1 + net.scale * net.side(hidden)}
        return {name: tensor.double() for name, tensor in rows.items()}


def test_moments_are_those_of_the_inputs(path):
    model = small()
    found = taken(model, path, HESSIAN, SECOND_MOMENT)
    assert {*found} == {f"{name}:{kind}" for name in LAYERS for kind in (HESSIAN, SECOND_MOMENT)}  # not the depthwise
    every = [rows_of(model, batch) for batch in PICTURES]
    for name in LAYERS:
        rows = torch.cat([each[name] for each in every])
        hessian = (rows.T @ rows / len(rows)).numpy()
        np.testing.assert_allclose(found[f"{name}:{HESSIAN}"], hessian, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[f"{name}:{SECOND_MOMENT}"], hessian.diagonal()[None], rtol=1e-5)
        assert found[f"{name}:{HESSIAN}"].dtype == np.float32


@pytest.mark.parametrize("kind", [FISHER, TAYLOR])
def test_gradients_are_those_of_a_plain_loop(path, kind):
    model = small()
    found = taken(model, path, kind)
    parameters = {name: one for name, one in model.module.named_parameters() if one.ndim > 1}
    wanted = {name: torch.zeros(one.shape) for name, one in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    for batch in PICTURES:
        for x in torch.split(batch.inputs[0], SMALL_BATCH):
            model.module.zero_grad()
            scores = model.module(x)
            labels = torch.multinomial((scores.detach() / TEMPERATURE).softmax(1), 1, generator=generator)[:, 0]
            (-scores.log_softmax(1)[range(len(x)), labels].mean()).backward()
            for name, one in parameters.items():
                wanted[name] += one.grad**2 if kind == FISHER else (one.grad * one.detach()).abs()
    assert {*found} == {f"{name}:{kind}" for name in wanted}
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[f"{name}:{kind}"], tensor.flatten(1), rtol=1e-4, atol=1e-9)
        assert found[f"{name}:{kind}"].max() > 0


def test_sensitivity_is_the_change_of_the_outputs_over_the_squared_error(path):
    model = small()
    found = taken(model, path, SENSITIVITY)
    assert {*found} == {f"{name}:{SENSITIVITY}" for name in LAYERS}
    for name in LAYERS:
        with torch.no_grad():
            weight = model.module.get_parameter(name)
            kept = weight.clone()
            noisy = kept + 0.08 * kept.square().mean().sqrt() * torch.randn(kept.shape)
            before = [model.scores(batch) for batch in PICTURES]
            weight.copy_(noisy)
            far = [apart(model, each, model.scores(each), old) for each, old in zip(PICTURES, before, strict=True)]
            weight.copy_(kept)
        direct = sum(far) / 2 / float((noisy - kept).square().sum())
        assert 0.1 * direct < found[f"{name}:{SENSITIVITY}"][0, 0] < 10 * direct  # of other noise


def test_a_layer_whose_output_counts_nothing_is_the_least_sensitive(path):
    found = taken(small(scale=0.0), path, SENSITIVITY, FISHER)
    values = {name: float(found[f"{name}:{SENSITIVITY}"][0, 0]) for name in LAYERS}
    assert values["side.weight"] == values["conv.weight"] == 0 < values["head.weight"]
    assert found[f"side.weight:{FISHER}"].max() == 0 < found[f"head.weight:{FISHER}"].max()


def test_weights_in_groups_give_the_same_file(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    kinds = [*KINDS]
    taken(small(), one, *kinds)
    said: list[str] = []
    monkeypatch.setattr(module, "BUDGET", 1)
    taken(small(), other, *kinds, say=said.append)
    assert one.read_bytes() == other.read_bytes()
    assert len(said) == 2 * len(LAYERS) + 2 * (len(LAYERS) + 1) + 1
    assert "second moment of conv.weight" in said


def test_groups_fit_in_the_budget(monkeypatch):
    specs = [TensorSpec(str(columns), F32, (2, columns)) for columns in (3, 4, 9, 1, 1)]
    monkeypatch.setattr(module, "BUDGET", 8 * 25)
    groups = [[spec.name for spec in group] for group in module._groups(specs, HESSIAN)]
    assert groups == [["3", "4"], ["9"], ["1", "1"]]


def test_the_same_bytes_every_time(tmp_path):
    torch.manual_seed(5)
    taken(small(), tmp_path / "one", *KINDS)
    torch.manual_seed(6)
    taken(small(), tmp_path / "other", *KINDS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_file_says_where_it_is_from(path):
    taken(small(), path, SECOND_MOMENT)
    with safe_open(path, "np") as file:
        assert file.metadata() == {
            "format": "modelzip.statistics",
            "version": "1",
            "examples": "36",
            "data": "points.npz",
            "network": "a test",
        }


def test_the_file_is_read_as_it_was_written(path):
    model = small()
    found = taken(model, path, *KINDS)
    file = StatisticsFile(path)
    for spec in specs_of(model):
        for kind in KINDS:
            name = f"{spec.name}:{kind}"
            assert file.has(spec, kind) == (name in found)
            if name in found:
                np.testing.assert_array_equal(file.read(spec, kind), found[name].reshape(shape_of(spec, kind)))
    file.close()


def test_names_are_those_of_the_checkpoint(path):
    model = small()
    specs = specs_of(model, "module.")
    found = taken(model, path, *KINDS, specs=specs)
    assert {name.rpartition(":")[0] for name in found} == {spec.name for spec in specs}
    same = taken(model, path, *KINDS, replace=True)
    for name, values in same.items():
        if SENSITIVITY not in name:  # its noise is chosen by the name
            np.testing.assert_array_equal(found[f"module.{name}"], values)


@pytest.mark.parametrize("name", ["tok.weight", "head.weight"])
def test_a_tied_weight_is_found_by_the_name_that_the_file_has(path, name):
    net = Net(lambda net, x: net.head(net.mid(net.tok(x))), tok=nn.Embedding(7, 4), mid=nn.Linear(4, 4))
    net.head = nn.Linear(4, 7, bias=False)
    net.head.weight = net.tok.weight
    model = Model(net.eval(), "lm", "a test", Wanted(kind="tokens"), 0)
    data = [Batch((torch.arange(20).reshape(4, 5) % 7,), None)]
    found = taken(model, path, *KINDS, data=data, specs=[TensorSpec(name, F32, (7, 4))])
    assert {*found} == {f"{name}:{kind}" for kind in KINDS}
    with torch.no_grad():
        rows = net.mid(net.tok(data[0].inputs[0])).reshape(-1, 4)
    np.testing.assert_allclose(found[f"{name}:{HESSIAN}"], (rows.T @ rows / 20).numpy(), rtol=1e-4, atol=1e-6)


def test_padding_counts_for_nothing(path):
    net = Net(lambda net, x, mask: net.head(net.tok(x)), tok=nn.Embedding(7, 4), head=nn.Linear(4, 7))
    model = Model(net.eval(), "lm", "a test", Wanted(kind="tokens", inputs=2), 0)
    tokens, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = taken(model, path, SECOND_MOMENT, FISHER, data=[Batch((tokens, mask), None)])
    with torch.no_grad():
        rows = net.tok(tokens[mask.bool()])
    np.testing.assert_allclose(found[f"head.weight:{SECOND_MOMENT}"][0], rows.square().mean(0), rtol=1e-5)
    touched = found[f"tok.weight:{FISHER}"].max(1) > 0
    assert touched.tolist() == [False, True, True, True, True, True, False]


def test_features_have_statistics_too(path):
    model = Model(small().module, "features", "a test", Wanted(), 0, features=True)
    found = taken(model, path, FISHER, SENSITIVITY)
    assert all(np.isfinite(values).all() and values.max() > 0 for values in found.values())


def test_a_model_of_a_fixed_batch_gets_batches_of_it(path):
    sizes: list[int] = []
    model = small()
    model.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    fixed = Model(model.module, "small", "a test", Wanted(batch=10), 0)
    taken(fixed, path, *KINDS, data=batches(2, 6, 6, sizes=(10, 10)))
    assert {*sizes} == {10}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_statistics_in_single(path, dtype):
    half = Model(nn.Sequential(nn.Linear(72, 5), nn.Linear(5, 3)).to(dtype).eval(), "half", "a test", Wanted(), 0)
    data = [Batch((batch.inputs[0].flatten(1).to(dtype),), None) for batch in PICTURES]
    found = taken(half, path, *KINDS, data=data)
    assert {*(values.dtype for values in found.values())} == {np.dtype(np.float32)}
    assert all(np.isfinite(values).all() and values.max() > 0 for values in found.values())


def test_the_model_is_as_before(path):
    model = small()
    model.module.conv.weight.requires_grad_(False)
    before = {name: one.detach().clone() for name, one in model.module.named_parameters()}
    needed = {name: one.requires_grad for name, one in model.module.named_parameters()}
    taken(model, path, *KINDS)
    assert {name: one.requires_grad for name, one in model.module.named_parameters()} == needed
    for name, one in model.module.named_parameters():
        assert torch.equal(one, before[name])
        assert one.grad is None
    assert not model.module.training


@pytest.mark.parametrize("kind", [*KINDS])
def test_nothing_is_left_when_it_fails_half_way(path, monkeypatch, kind):
    model = small()
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError

    model.module.register_forward_pre_hook(fail)
    needed = [one.requires_grad for one in model.module.parameters()]
    with pytest.raises(ModelDoesNotRun):
        taken(model, path, kind, SENSITIVITY)
    assert os.listdir(path.parent) == []
    assert [one.requires_grad for one in model.module.parameters()] == needed


def test_what_is_there_stays_unless_it_is_to_be_replaced(path):
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        taken(small(), path, SECOND_MOMENT)
    assert path.read_bytes() == b"mine"
    assert taken(small(), path, SECOND_MOMENT, replace=True)
    assert os.listdir(path.parent) == [path.name]


def test_of_a_model_without_layers_that_are_seen_there_is_no_file(path):
    model = Model(nn.Conv2d(4, 4, 3, groups=4).eval(), "depthwise", "a test", Wanted(), 0)
    data = batches(4, 6, 6)
    assert not calibrate(model, specs_of(model), data, [HESSIAN, SENSITIVITY], path, replace=False, data="points.npz")
    assert not path.exists()
