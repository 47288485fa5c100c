from __future__ import annotations

import io
import json

import pytest
import torch
from torch import nn
from torch.export import Dim
from train import DigitsCNN

from modelzip_cli.errors import BrokenCheckpoint, FileNotThere, UnsupportedCheckpoint
from modelzip_cli.running.export import load_export, save_export
from modelzip_cli.running.graph import set_training
from modelzip_cli.running.inputs import Wanted
from tests.exports import PROGRAM, Small, changed, entries, exported, small

PICTURES = Wanted(shape=(1, 12, 12))
TEXT = Wanted(kind="tokens", shape=(None,), context=64)


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(remove_duplicate=False)]


# Loading


def test_a_network_gives_what_it_gave_before_it_was_exported(cnn, cnn_file):
    found, eager, x = load_export(cnn_file), cnn().eval(), torch.rand(5, 1, 12, 12)
    assert torch.equal(found.module(x), eager(x))
    assert found.module.state_dict().keys() == eager.state_dict().keys()
    assert found.wanted == PICTURES
    assert found.recipe is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 8), (7, 5)])
def test_a_language_model_takes_batches_and_texts_of_any_size(shape, lm, lm_file):
    found, eager, x = load_export(lm_file), lm().eval(), torch.randint(90, shape)
    assert torch.equal(found.module(x), eager(x))
    assert found.wanted == TEXT


def test_tied_weights_are_tied_again(lm, lm_file):
    found, eager, x = load_export(lm_file).module, lm().eval(), torch.randint(90, (2, 8))
    assert found.tok.weight is found.head.weight
    assert len(list(found.parameters())) == len(list(eager.parameters()))
    assert names(found) == names(eager)
    found(x).square().sum().backward()
    eager(x).square().sum().backward()
    assert torch.equal(found.tok.weight.grad, eager.tok.weight.grad)


def test_equal_weights_are_not_tied(loaded):
    module = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)).eval()
    found = loaded(exported(module, torch.rand(2, 4))).module
    assert len(list(found.parameters())) == 4


def test_every_parameter_gets_a_gradient(cnn_file):
    module = load_export(cnn_file).module
    module(torch.rand(2, 1, 12, 12)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_fixed_batch_is_found(loaded):
    found = loaded(exported(nn.Linear(4, 3), torch.rand(6, 4), axes={}))
    assert found.wanted == Wanted(shape=(4,), batch=6)
    assert found.module(torch.rand(6, 4)).shape == (6, 3)


def test_a_model_with_a_mask_takes_two_inputs(loaded):
    class Masked(nn.Module):
        def forward(self, tokens, mask):
            return (tokens * mask).float()

    tokens, mask = torch.ones(2, 2, 5, dtype=torch.int64)
    found = loaded(exported(Masked(), tokens, mask, axes={0: Dim.AUTO, 1: Dim.AUTO}))
    assert found.wanted == Wanted(kind="tokens", shape=(None,), inputs=2)
    assert torch.equal(
        found.module(torch.full((3, 4), 2), torch.ones(3, 4, dtype=torch.int64)), torch.full((3, 4), 2.0)
    )


def test_inputs_by_name_are_taken_by_position_and_constants_are_left_out(loaded):
    class Named(nn.Module):
        def forward(self, x, *, double=False, nothing=None):
            return 2 * x if double else x

    program = torch.export.export(Named(), (), {"x": torch.ones(2, 4), "double": True})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    found = loaded(buffer.getvalue())
    assert found.wanted.inputs == 1
    assert torch.equal(found.module(torch.ones(2, 4)), torch.full((2, 4), 2.0))


class Several(nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, x):
        return {"count": x.shape[0], "hidden": [x + 1, x + 2], self.key: x + 3}


@pytest.mark.parametrize(("key", "taken"), [("logits", 3), ("scores", 1)])
def test_of_several_outputs_the_logits_are_taken_else_the_first_tensor(key, taken, loaded):
    found = loaded(exported(Several(key), torch.zeros(2, 4)))
    assert torch.equal(found.module(torch.zeros(3, 4)), torch.full((3, 4), float(taken)))


def test_an_output_of_a_class_that_is_not_installed_is_no_obstacle(loaded):
    def change(program):
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": "transformers.modeling_outputs.Tomorrow", "context": '["logits"]', "children_spec": [leaf]}
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])

    assert loaded(changed(small(), program=change)).module(torch.ones(1, 8)).shape == (2, 3)


def test_a_region_without_gradients_is_run(loaded):
    class Frozen(Small):
        def forward(self, x):
            with torch.no_grad():
                features = self.layer(x)
            return features * 2

    module = Frozen().eval()
    x = torch.rand(3, 4)
    assert torch.equal(loaded(exported(module, torch.rand(2, 4))).module(x), module(x))


def test_a_file_from_another_device_is_loaded_on_this_one(loaded):
    def change(program):
        for meta in program["graph_module"]["graph"]["tensor_values"].values():
            meta["device"] = {"type": "cuda", "index": 3}

    def move(weights):
        for payload in weights["config"].values():
            payload["tensor_meta"]["device"] = {"type": "cuda", "index": 3}

    module = loaded(changed(small(), program=change, weights=move)).module
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


class NoTensor(nn.Module):
    def forward(self, x):
        return x.shape[0]


class Number(nn.Module):
    def forward(self, x):
        return x + 1


def test_a_model_without_a_tensor_as_output_is_refused(loaded):
    with pytest.raises(UnsupportedCheckpoint, match="it returns no tensor"):
        loaded(exported(NoTensor(), torch.rand(2, 4)))


def test_a_model_without_a_batch_axis_is_refused(loaded):
    with pytest.raises(UnsupportedCheckpoint, match="without a batch axis"):
        loaded(exported(Number(), torch.tensor(1.0), axes={}))


def test_inputs_that_are_not_tensors_are_refused(loaded):
    class Repeated(nn.Module):
        def forward(self, x, times):
            return x.repeat(times, 1)

    program = torch.export.export(Repeated(), (torch.rand(2, 4), 3), dynamic_shapes=({0: Dim.AUTO}, Dim.DYNAMIC))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with pytest.raises(UnsupportedCheckpoint, match="inputs that are not tensors"):
        loaded(buffer.getvalue())


def test_what_is_no_export_is_named(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt2")
    with pytest.raises(UnsupportedCheckpoint, match=r"not a torch\.export archive"):
        load_export(tmp_path / "weights.pt2")
    (tmp_path / "empty.pt2").touch()
    with pytest.raises(BrokenCheckpoint):
        load_export(tmp_path / "empty.pt2")
    with pytest.raises(FileNotThere):
        load_export(tmp_path / "missing.pt2")


def test_loading_is_silent(lm_file, capfd, recwarn):
    load_export(lm_file)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


# Saving


RECIPE = {"width": 0.5, "from": "x.pt2"}


def test_a_sample_model_is_saved_for_modelzip_and_for_torch(loaded):
    eager, example = DigitsCNN((4, 8, 12)), torch.rand(2, 1, 12, 12)
    archive = save_export(eager, (example,), wanted=PICTURES, recipe=RECIPE)
    found, x = loaded(archive), torch.rand(5, 1, 12, 12)
    eager.eval()
    assert torch.equal(found.module(x), eager(x))
    assert found.module.state_dict().keys() == eager.state_dict().keys()
    assert (found.wanted, found.recipe) == (PICTURES, RECIPE)
    assert torch.equal(torch.export.load(io.BytesIO(archive)).module()(x), eager(x))


@pytest.fixture(scope="session")
def saved_lm(lm) -> bytes:
    return save_export(lm(), (torch.zeros(2, 8, dtype=torch.int64),), wanted=TEXT, recipe=RECIPE)


def test_a_language_model_is_saved_loaded_and_saved_again(lm, saved_lm, loaded):
    eager, x = lm().eval(), torch.randint(90, (3, 20))
    once = loaded(saved_lm)
    twice = loaded(save_export(once.module, (torch.randint(90, (2, 8)),), wanted=once.wanted, recipe=None))
    for found in (once, twice):
        assert torch.equal(found.module(x), eager(x))
        assert names(found.module) == names(eager)
        assert found.module.tok.weight is found.module.head.weight
        assert found.wanted == TEXT
        modules = {
            path for node in found.module.graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()
        }
        assert {"tok", "blocks.0.qkv", "norm", "head"} <= modules


def test_a_changed_graph_is_saved_as_it_is(cnn_file, loaded):
    module = load_export(cnn_file).module
    with torch.no_grad():
        module.conv1.weight.mul_(2)
    set_training(module, True)
    x = torch.rand(2, 1, 12, 12)
    again = loaded(save_export(module, (x,), wanted=PICTURES, recipe=None)).module
    assert module.training
    set_training(module, False)
    assert torch.equal(again(x), module(x))


def test_the_same_model_gives_the_same_bytes_without_paths_or_inputs(lm, saved_lm):
    example = (torch.randint(90, (2, 8)),)
    assert save_export(lm(), example, wanted=TEXT, recipe=RECIPE) == saved_lm
    content = entries(saved_lm)
    assert content["data/sample_inputs/model.pt"] == b""
    assert b"stack_trace" not in content[PROGRAM]
    assert b".py" not in content[PROGRAM]


def test_a_tied_weight_is_stored_once(lm, saved_lm):
    stored = sum(len(data) for name, data in entries(saved_lm).items() if "/weight_" in name)
    assert stored == sum(parameter.nbytes for parameter in lm().parameters())


def test_a_fixed_batch_is_saved_as_one(loaded):
    wanted = Wanted(shape=(4,), batch=6)
    assert loaded(save_export(nn.Linear(4, 3), (torch.rand(6, 4),), wanted=wanted, recipe=None)).wanted == wanted


def test_saving_leaves_each_part_in_its_mode():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    module[2].eval()
    save_export(module, (torch.rand(2, 4),), wanted=Wanted(shape=(4,)), recipe=None)
    assert [part.training for part in module.modules()] == [True, True, True, False]


class Pairs(nn.Module):
    def forward(self, x):
        return x + torch.arange(8.0).view(2, 4)


class Branch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Choice(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Pairs(), "fixes the batch size at 2"),
        (Branch(), "cannot export the model: "),
        (Choice(), r"cannot be saved as \.pt2.*torch\.ops\.higher_order\.cond"),
    ],
    ids=["a fixed batch", "a branch on data", "an operator with a graph"],
)
def test_a_model_that_cannot_be_exported_is_named(module, message):
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        save_export(module, (torch.rand(2, 4),), wanted=Wanted(shape=(4,)), recipe=None)
    assert str(caught.value).isprintable()
