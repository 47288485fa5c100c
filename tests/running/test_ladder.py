"""From a file to a model that runs: every way to its network, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelzip_cli.errors import (
    FileNotThere,
    ModelDoesNotRun,
    ModelzipError,
    NoModel,
    UnsafeInput,
    UsageError,
    UserCodeFailed,
    WrongArchitecture,
)
from modelzip_cli.recipe import Recipe
from modelzip_cli.running.inputs import Batch
from modelzip_cli.running.ladder import Network, open_model, open_reference
from modelzip_cli.running.model import NOTE, Model
from modelzip_cli.single import Settings, compress_file
from tests.exports import changed, exported
from tests.hostile.test_manifests import Native
from tests.net import CLASSES, FEATURES, WIDTH, Net
from tests.running.opening import written


@pytest.fixture
def copied(classifier, tmp_path):
    """Copy a file of the small classifier into `tmp_path`, maybe under another name."""

    def copy(name: str, to: str | None = None) -> Path:
        return Path(shutil.copy(classifier.path(name), tmp_path / (to or name)))

    return copy


@pytest.fixture
def scores(classifier):
    """The scores of a model on the classifier's data, and those of the network that it should be."""
    x = torch.from_numpy(np.load(classifier.path("data.npz"))["x"])
    net = Net().eval()
    net.load_state_dict(load_file(classifier.path("net.safetensors")))

    def of(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return model.scores(Batch((x,), None)), net(x)

    return of


def refusal(path: Path, error: type[ModelzipError], **network: object) -> str:
    """The one line that an attempt to open ends with."""
    with pytest.raises(ModelzipError) as caught:
        open_model(path, Network(**network))
    assert type(caught.value) is error, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_file_brings_its_network(classifier, scores):
    path = classifier.path("net.pt2")
    model = open_model(path, Network())
    assert (model.rung, model.label, model.bytes) == ("exported graph", str(path), path.stat().st_size)
    assert (model.wanted.kind, model.wanted.shape, model.is_graph) == ("floats", (FEATURES,), True)
    assert model.parameters == sum(parameter.numel() for parameter in Net().parameters())
    assert torch.allclose(*scores(model), atol=1e-6)


@pytest.mark.parametrize("arch", ["net.py:Net", "net.pt2"])
def test_arch_names_the_network_of_a_state_dict(classifier, scores, arch):
    named = classifier.arch if arch == "net.py:Net" else str(classifier.path(arch))
    path = classifier.path("net.safetensors")
    model = open_model(path, Network(named))
    assert arch in model.rung
    assert (model.label, model.bytes) == (str(path), path.stat().st_size)
    assert torch.allclose(*scores(model), atol=1e-6)


def test_arch_wins_over_the_graph_of_an_exported_file(classifier, scores):
    model = open_model(classifier.path("net.pt2"), Network(classifier.arch))
    assert isinstance(model.module, nn.Module)
    assert (model.rung, model.is_graph) == (classifier.arch, False)
    assert torch.allclose(*scores(model), atol=1e-6)


def test_a_reference_that_is_exported_keeps_its_own_graph(classifier):
    network = Network(classifier.arch, {"classes": 7})  # of the student that is held against it
    assert open_reference(classifier.path("net.pt2"), network).rung == "exported graph"
    with pytest.raises(WrongArchitecture):
        open_reference(classifier.path("net.safetensors"), network)
    with pytest.raises(UsageError, match="standard input"):
        open_reference(Path("-"), network)


def test_a_compressed_file_takes_the_graph_that_it_was_made_from(copied, scores):
    copied("net.pt2")
    path = copied("net.int8.safetensors", "renamed.safetensors")
    model = open_model(path, Network())
    assert model.rung == "the graph of net.pt2 beside it"
    assert (model.label, model.bytes) == (str(path), path.stat().st_size)
    ours, theirs = scores(model)
    assert not torch.equal(ours, theirs)  # the weights are those of the compressed file
    assert torch.allclose(ours, theirs, atol=0.05)


def test_a_graph_beside_a_compressed_file_that_has_changed_is_not_taken(copied, tmp_path):
    path = copied("net.int8.safetensors")
    (tmp_path / "net.pt2").write_bytes(exported(Net().eval(), torch.zeros(2, FEATURES)))
    message = refusal(path, NoModel)
    assert "It was made from another net.pt2 than the one beside it: give that graph as --arch" in message


def test_a_compressed_file_says_what_it_was_made_from(copied):
    message = refusal(copied("net.int8.safetensors"), NoModel)
    assert message.endswith("It was made from net.pt2: give that graph, as in --arch net.pt2")


def test_a_manifest_that_points_elsewhere_is_not_followed(copied, tmp_path):
    (tmp_path / "inner").mkdir()
    copied("net.pt2")
    native = Native(copied("net.int8.safetensors"))
    native.manifest["source"]["name"] = "../net.pt2"
    assert "../net.pt2" in refusal(native.write(tmp_path / "inner" / "forged.safetensors", native.manifest), NoModel)
    native.manifest["source"]["name"] = "net.pt2"
    assert open_model(native.write(tmp_path / "honest.safetensors", native.manifest), Network()).is_graph


@pytest.mark.parametrize("name", ["net.safetensors", "nested.pth"])
def test_a_bare_state_dict_says_what_to_do(classifier, name):
    message = refusal(classifier.path(name), NoModel, key="student" if name == "nested.pth" else None)
    assert message.startswith(f"{classifier.path(name)} holds weights but not the network that uses them. Give one of:")
    for way in (
        "--arch file.py:Net",
        "--arch package.module:factory",
        "--arch model.pt2",
        "--arch DIR",
        "torch.export",
    ):
        assert way in message


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_student_says_with_which_network_it_was_made(tmp_path, kind):
    path, tensors = tmp_path / f"student.{kind}", Net().state_dict()
    note = json.dumps({"arch": "small.py:Small\x1b[2J"})
    if kind == "pth":
        torch.save({"state_dict": tensors, NOTE: note}, path)
    else:
        save_file(tensors, path, {NOTE: note})
    message = refusal(path, NoModel)
    assert message.endswith("It was made with --arch small.py:Small\\x1b[2J: give that again")


@pytest.mark.parametrize("note", ["[" * 100_000, "[]", '"arch"', "1", '{"arch": 1}', "{", ""])
def test_a_note_that_is_none_is_passed_over(tmp_path, note):
    save_file(Net().state_dict(), tmp_path / "net.safetensors", {NOTE: note})
    assert "Give one of" in refusal(tmp_path / "net.safetensors", NoModel)


def test_linear_layers_that_chain_are_a_perceptron(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    save_file(net.state_dict(), tmp_path / "mlp.safetensors")
    model = open_model(tmp_path / "mlp.safetensors", Network())
    assert (model.rung, model.wanted.shape, model.parameters) == ("perceptron of 2 layers", (4,), 67)
    x = torch.randn(5, 4)
    assert torch.allclose(model.run((x,)), net(x), atol=1e-6)


def test_arguments_go_to_the_network(classifier, tmp_path):
    save_file(Net(width=4, classes=5).state_dict(), tmp_path / "small.safetensors")
    message = refusal(tmp_path / "small.safetensors", WrongArchitecture, arch=classifier.arch)
    assert f"does not fit --arch {classifier.arch}: " in message
    assert f"first.weight is [4, {FEATURES}], not [{WIDTH}, {FEATURES}]" in message
    model = open_model(tmp_path / "small.safetensors", Network(classifier.arch, {"width": 4, "classes": 5}))
    assert model.run((torch.zeros(2, FEATURES),)).shape == (2, 5)


def test_another_number_of_classes_is_advised(classifier, tmp_path):
    save_file(Net(classes=7).state_dict(), tmp_path / "seven.safetensors")
    message = refusal(tmp_path / "seven.safetensors", WrongArchitecture, arch=classifier.arch)
    assert message.endswith("""The file has 7 outputs: give that number, as in --arch-args '{"num_classes": 7}'""")
    message = refusal(tmp_path / "seven.safetensors", WrongArchitecture, arch=str(classifier.path("net.pt2")))
    assert message.endswith("The file has 7 outputs")  # a graph takes no arguments


def test_a_key_chooses_in_a_nested_checkpoint(classifier, scores):
    path = classifier.path("nested.pth")
    assert torch.allclose(*scores(open_model(path, Network(classifier.arch, key="teacher"))), atol=1e-6)
    ours, theirs = scores(open_model(path, Network(classifier.arch, key="student")))
    assert not torch.allclose(ours, theirs, atol=1e-2)
    message = refusal(path, UsageError, arch=classifier.arch, key="pupil")
    assert message.endswith("--key 'pupil' names no state dict; there are teacher, student")


@pytest.mark.parametrize(
    ("arch", "arguments", "error", "problem"),
    [
        ("missing.pt2", {}, FileNotThere, "--arch {}: does not exist"),
        ("net.pt2", {"width": 3}, UsageError, "--arch {}: takes no --arch-args; they are for classes and functions"),
        (".", {"width": 3}, UsageError, "--arch {}: takes no --arch-args; they are for classes and functions"),
        ("data.npz", {}, UsageError, "{}: names no network; write file.py:Net"),
        ("missing.py:Net", {}, FileNotThere, "missing.py: no such file"),
    ],
)
def test_an_arch_that_names_nothing_is_refused(classifier, arch, arguments, error, problem):
    named = str(classifier.path(arch))
    message = refusal(classifier.path("net.safetensors"), error, arch=named, arguments=arguments)
    assert problem.format(named) in message


def test_standard_input_is_no_model():
    assert "cannot be read from standard input: name a file" in refusal(Path("-"), UsageError)


def test_a_file_with_code_in_it_is_refused_in_every_role(classifier, tmp_path):
    def pickled(weights: dict[str, Any]) -> None:
        weights["config"]["first.weight"]["use_pickle"] = True

    evil = tmp_path / "evil.pt2"
    evil.write_bytes(changed(classifier.path("net.pt2").read_bytes(), weights=pickled))
    for message in (
        refusal(evil, UnsafeInput),
        refusal(evil, UnsafeInput, arch=classifier.arch),
        refusal(classifier.path("net.safetensors"), UnsafeInput, arch=str(evil)),
    ):
        assert message.startswith(str(evil))
    assert UnsafeInput.exit_code == 5


CODE = """
import torch
from torch import nn
from tests.hostile.test_manifests import Native
from tests.net import Net

class Raises(Net):
    def forward(self, x):
        raise ValueError("first line\\nsecond line")

class Exits(Net):
    def forward(self, x):
        raise SystemExit(3)

class Scalar(Net):
    def forward(self, x):
        return super().forward(x).sum()

class Pictures(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]

class Text(Net):
    def forward(self, x):
        return "scores"

class Ends(Net):
    def __init__(self):
        raise KeyError("config")

class Half(Net):
    def __init__(self):
        super().__init__()
        self.bfloat16()

class Trains(Net):
    def forward(self, x):
        assert not self.training and not self.norm.training
        return super().forward(x)
"""


@pytest.fixture
def own(classifier, tmp_path):
    """Open the classifier's weights with a class of the code above."""
    path = written(tmp_path / "own.py", CODE)

    def open_own(name: str) -> Model:
        return open_model(classifier.path("net.safetensors"), Network(f"{path}:{name}"))

    return open_own


def first_batch(model: Model) -> str:
    """How the first batch fails."""
    with pytest.raises(ModelDoesNotRun) as caught:
        model.check(Batch((torch.zeros(2, FEATURES),), torch.zeros(2, dtype=torch.int64)))
    assert str(caught.value).startswith(f"{model.label}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_code_that_raises_as_it_runs_is_told_with_its_input(own):
    message = first_batch(own("Raises"))
    assert "the model fails on float32 [2, 16]: ValueError: first line; are the data of the kind and" in message


def test_code_that_ends_the_program_is_told(own):
    assert "the model fails on float32 [2, 16]: SystemExit: 3" in first_batch(own("Exits"))


def test_code_that_raises_as_it_is_built_is_told(own):
    with pytest.raises(UserCodeFailed, match=r"own.py:Ends: KeyError: 'config'; --debug shows where"):
        own("Ends")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Scalar", "for float32 [2, 16] the model gives [], which is no score for every class: [batch, classes] or"),
        ("Pictures", "the model gives [2, 3, 1, 1], which is no score"),
        ("Text", "the model returns a str, in which no tensor of scores is found"),
    ],
)
def test_what_is_no_score_is_refused(own, name, problem):
    assert problem in first_batch(own(name))


def test_a_network_in_half_precision_computes_in_single(own, scores):
    assert torch.allclose(*scores(own("Half")), atol=1e-6)


def test_a_network_is_in_evaluation_mode(own, scores):
    assert torch.allclose(*scores(own("Trains")), atol=1e-6)


def test_data_of_another_shape_are_told(classifier):
    model = open_model(classifier.path("net.safetensors"), Network(classifier.arch))
    with pytest.raises(ModelDoesNotRun, match=r"fails on float32 \[2, 9\]: RuntimeError: .*9.*16"):
        model.check(Batch((torch.zeros(2, 9),), None))


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path):
    torch.manual_seed(0)
    net = Net(width=8).eval()
    (tmp_path / "four.pt2").write_bytes(exported(net, torch.zeros(4, FEATURES), axes={}))
    model = open_model(tmp_path / "four.pt2", Network())
    assert model.wanted.batch == 4
    x = torch.randn(7, FEATURES)
    with torch.no_grad():
        for count in (1, 4, 7):
            assert torch.allclose(model.scores(Batch((x[:count],), None)), net(x[:count]), atol=1e-6)


def test_every_scheme_that_restores_runs(classifier, tmp_path, scores):
    for scheme in ("fp16", "ecq-s0.1", "lossless"):
        path = tmp_path / f"net.{scheme}.safetensors"
        compress_file(classifier.path("net.safetensors"), path, Recipe(scheme=scheme), Settings(1), command="quantize")
        ours, theirs = scores(open_model(path, Network(classifier.arch)))
        assert ours.shape == (len(theirs), CLASSES)
        assert torch.allclose(ours, theirs, atol=0.5)
