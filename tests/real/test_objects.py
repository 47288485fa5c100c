"""Objects of other classes in a pickle: left out with a warning, or refused, and never made."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from modelzip_cli import load_file
from modelzip_cli.errors import UnsafeInput
from modelzip_cli.source import open_source
from tests.checkpoints import weights
from tests.hostile.makers import BUILD, call, integer, items, mapping, pickle_of, sequence, tensor, text, torch_file
from tests.hostile.makers import name as named
from tests.real.checks import STATE, assert_refused, each_form, files_in, load

OPAQUE = {  # what pickles hold beside weights; none of these classes is installed for modelzip
    "argparse.Namespace": call("copyreg._reconstructor", named("argparse.Namespace"), named("builtins.object"), b"N")
    + mapping({"lr": integer(1)})
    + BUILD,
    "omegaconf.dictconfig.DictConfig": named("omegaconf.dictconfig.DictConfig")
    + b")\x81"
    + mapping({"_metadata": call("omegaconf.base.ContainerMetadata"), "_content": mapping({"lr": integer(1)})})
    + BUILD,
    "typing.Any": named("typing.Any"),
    "builtins.long": named("__builtin__.long"),
    "lightning.fabric.utilities.data.AttributeDict": named("lightning.fabric.utilities.data.AttributeDict")
    + b")\x81("
    + text("lr")
    + integer(1)
    + b"u",
    "pathlib.PosixPath": call("pathlib.PosixPath", text("/"), text("home"), text("me")),
    "torchmetrics.functional.accuracy": named("torchmetrics.functional.accuracy"),
    "somelib.layers.Attention": named("somelib.layers.Attention") + b")\x81" + mapping({"heads": integer(8)}) + BUILD,
    "numpy.core.multiarray.scalar": call(
        "numpy.core.multiarray.scalar",
        call("numpy.dtype", text("f8"), b"\x89", b"\x88"),
        call("_codecs.encode", text("abcdefgh"), text("latin1")),
    ),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_an_object_inside_of_another_class_is_left_out_with_a_warning_that_names_it(kind, run, tmp_path):
    root = mapping({"state_dict": mapping({"w": tensor()}), "epoch": integer(3), "extra": OPAQUE[kind]})
    path = torch_file(tmp_path / "model.ckpt", root)
    done = run("quantize", path, "--json", "-o", "s.safetensors")
    assert done.exit_code == 0, done.stderr
    assert any(kind in warning for warning in done.json["warnings"])
    assert any(kind in warning for warning in run("inspect", path, "--json").json["warnings"])
    assert run("restore", "s.safetensors", "-o", "back.ckpt").exit_code == 0
    found = load(tmp_path / "back.ckpt")
    assert found["epoch"] == 3
    assert "extra" not in found
    assert found["state_dict"]["w"].tolist() == [[1, 2], [3, 4]]


@each_form
def test_arguments_inside_of_a_legacy_or_zip_file_are_left_out(write, run, tmp_path):
    value = {"model": STATE, "args": argparse.Namespace(lr=0.1, path=Path("x")), "epoch": 3}
    path = write(tmp_path / "model.pth", value)
    done = run("quantize", path, "--json")
    assert done.exit_code == 0, done.stderr
    assert any("argparse.Namespace" in warning for warning in done.json["warnings"])


PLAIN_GLOBALS = {  # rejected by torch's own weights_only in some version, and no reason to refuse
    "__builtin__.set": (call("__builtin__.set", items(integer(1), integer(2))), {1, 2}),
    "__builtin__.list": (call("__builtin__.list", items(integer(1))), [1]),
    "__builtin__.dict": (call("__builtin__.dict", items(sequence(text("a"), integer(1)))), {"a": 1}),
    "torch.device": (call("torch.device", text("cuda"), integer(0)), torch.device("cuda:0")),
    "torch.float32": (named("torch.float32"), torch.float32),
    "torch.Size": (call("torch.Size", sequence(integer(2), integer(3))), torch.Size([2, 3])),
}


@pytest.mark.parametrize("kind", PLAIN_GLOBALS)
def test_plain_values_inside_that_are_written_as_calls_are_kept(kind, there_and_back, tmp_path):
    opcodes, expected = PLAIN_GLOBALS[kind]
    path = torch_file(tmp_path / "m.pth", mapping({"model": mapping({"w": tensor()}), "extra": opcodes}))
    found = load(there_and_back(path))["extra"]
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("place", ["the file", "under model"])
def test_an_object_where_the_weights_should_be_is_unsafe_in_one_line(place, run, tmp_path):
    made = named("mymodels.Net") + b")\x81" + mapping({"layers": items(tensor())}) + BUILD
    root = made if place == "the file" else mapping({"model": made, "epoch": integer(3)})
    path = torch_file(tmp_path / "net.pth", root)
    done = run("quantize", path)
    assert_refused(done, 5, "net.pth", "mymodels.Net", "nothing was run", "state_dict")
    assert files_in(tmp_path) == ["net.pth"]
    with pytest.raises(UnsafeInput):
        open_source(path)


@each_form
def test_a_weight_that_is_no_plain_tensor_inside_is_not_lost_without_a_word_about_it(write, run, tmp_path):
    path = write(tmp_path / "m.pth", {"plain.weight": weights(64, 80), "sparse.weight": torch.eye(64).to_sparse()})
    assert_refused(run("quantize", path), 5, "m.pth", "sparse.weight", "torch._utils._rebuild_sparse_tensor")
    assert files_in(tmp_path) == ["m.pth"]


@pytest.mark.parametrize(("key", "beside"), [("state_dict", "params"), ("model_state_dict", "model"), ("model", "net")])
def test_an_object_beside_weights_inside_under_a_less_usual_key_is_left_out(key, beside, run, tmp_path):
    path = torch_file(
        tmp_path / "m.pth", mapping({key: mapping({"w": tensor()}), beside: OPAQUE["argparse.Namespace"]})
    )
    done = run("quantize", path, "--json")
    assert done.exit_code == 0, done.stderr
    assert any("argparse.Namespace" in warning for warning in done.json["warnings"])


def test_parameters_inside_that_are_made_by_their_class_are_weights(tmp_path):
    made = call("torch.nn.parameter.Parameter", tensor(), b"\x88")
    path = torch_file(tmp_path / "m.pth", mapping({"w": made, "v": tensor()}))
    assert load(path)["w"].tolist() == [[1, 2], [3, 4]]  # torch reads it
    assert [*load_file(path)] == ["w", "v"]


@each_form
def test_a_file_without_any_tensor_inside_has_a_message_of_its_own(write, run, tmp_path):
    for number, value in enumerate(
        (argparse.Namespace(lr=0.1), {"args": argparse.Namespace(lr=0.1)}, {"epoch": 3}, [1])
    ):
        path = write(tmp_path / f"{number}.pth", value)
        unsafe = isinstance(value, argparse.Namespace)  # it stands where the weights should be
        assert_refused(run("quantize", path), 5 if unsafe else 1, f"{number}.pth", "no tensor")


def test_a_bare_pickle_without_any_tensor_inside_is_refused(run, tmp_path):
    path = tmp_path / "args.pkl"
    path.write_bytes(pickle_of(OPAQUE["argparse.Namespace"]))
    assert_refused(run("quantize", path), 1, "args.pkl")
