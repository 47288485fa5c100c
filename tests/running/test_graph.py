from __future__ import annotations

import pytest
import torch
from torch import nn

from modelzip_cli.errors import UnsupportedCheckpoint
from modelzip_cli.running.export import load_export
from modelzip_cli.running.graph import check_trainable, evaluating, set_training
from tests.exports import exported

X = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(2))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = [(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items()]
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def seeded(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return module(x)


@pytest.fixture(scope="session")
def trained_file(cnn, tmp_path_factory):
    """A network that was exported in training mode."""
    path = tmp_path_factory.mktemp("exports") / "trained.pt2"
    path.write_bytes(exported(cnn(), torch.rand(2, 1, 12, 12)))
    return path


class Attention(nn.Module):
    """Two kinds of dropout, and attention with a third; inputs [batch, 5, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.dropout = nn.AlphaDropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.attention(x))


def test_training_is_that_of_the_model(cnn, cnn_file):
    found, eager = load_export(cnn_file).module, cnn()
    set_training(found, True)
    assert torch.equal(found(X), eager(X))
    for name, buffer in eager.named_buffers():
        if "num_batches_tracked" not in name:  # an export in evaluation mode does not count
            assert torch.equal(found.get_buffer(name), buffer)
    set_training(found, False)
    assert torch.equal(found(X), eager.eval()(X))


def test_a_model_exported_in_training_is_loaded_in_evaluation(cnn, trained_file):
    found, eager = load_export(trained_file).module, cnn().eval()
    assert not found.training
    assert torch.equal(found(X), eager(X))
    assert same_state(found, eager)


def test_a_model_exported_in_training_is_trained_with_its_counters(cnn, trained_file):
    found, eager = load_export(trained_file).module, cnn()
    set_training(found, True)
    assert torch.equal(found(X), eager(X))
    assert same_state(found, eager)
    set_training(found, False)
    assert torch.equal(found(X), eager.eval()(X))
    assert same_state(found, eager)


def test_dropout_of_every_kind_is_switched(loaded):
    eager, x = Attention(), torch.rand(3, 5, 4)
    found = loaded(exported(eager, torch.rand(2, 5, 4))).module
    assert torch.equal(seeded(found, x), found(x))  # nothing random in evaluation
    assert torch.allclose(found(x), eager.eval()(x), atol=1e-6)  # torch has a fused layer for evaluation
    set_training(found, True)
    assert torch.equal(seeded(found, x), seeded(eager.train(), x))
    assert not torch.equal(found(x), found(x))


def test_a_norm_without_running_statistics_takes_those_of_the_batch_in_both_modes(loaded):
    eager = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.InstanceNorm2d(1))
    found = loaded(exported(eager, torch.rand(2, 1, 12, 12))).module
    assert torch.equal(found(X), eager.eval()(X))
    set_training(found, True)
    assert torch.equal(found(X), eager.train()(X))


def test_an_instance_norm_with_running_statistics_is_switched(loaded):
    eager = nn.InstanceNorm2d(1, track_running_stats=True)
    found = loaded(exported(eager.eval(), torch.rand(2, 1, 12, 12))).module
    set_training(found, True)
    assert torch.equal(found(X), eager.train()(X))
    assert torch.equal(found.running_var, eager.running_var)
    set_training(found, False)
    assert torch.equal(found(X), eager.eval()(X))


@pytest.mark.parametrize("training", [True, False])
def test_a_decomposed_graph_is_run_but_not_trained(training, loaded):
    eager, x = nn.BatchNorm1d(3).train(training), torch.rand(5, 3)
    found = loaded(exported(eager, torch.rand(2, 3), decompose=True)).module
    assert torch.allclose(found(x), eager.eval()(x), atol=1e-6)
    assert same_state(found, eager)
    for refused in (lambda: check_trainable(found), lambda: set_training(found, True)):
        with pytest.raises(UnsupportedCheckpoint, match="exported for inference only"):
            refused()


def test_stochastic_depth_that_was_exported_in_training_mode_is_refused(loaded):
    class Depth(nn.Module):
        def forward(self, x):
            keep = x.new_empty(x.shape[0], 1).bernoulli_(0.9).div_(0.9) if self.training else 1
            return x * keep

    with pytest.raises(UnsupportedCheckpoint, match=r"loaded\.pt2: exported in training mode"):
        loaded(exported(Depth(), torch.rand(2, 4)))
    assert loaded(exported(Depth().eval(), torch.rand(2, 4))).wanted.shape == (4,)


def test_an_ordinary_module_is_switched_as_ever():
    module = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    set_training(module, False)
    assert not module[0].training
    set_training(module, True)
    assert module[0].training
    check_trainable(module)


def test_evaluation_for_a_while_leaves_an_exported_model_in_training(cnn, cnn_file):
    found, eager = load_export(cnn_file).module, cnn()
    set_training(found, True)
    with evaluating(found):
        assert torch.equal(found(X), eager.eval()(X))
    assert found.training
    assert torch.equal(found(X), eager.train()(X))
