"""Whole modules: their weights are read without their class."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelzip_cli import load_file
from modelzip_cli.cli import app as program
from modelzip_cli.source import open_source
from tests.checkpoints import same, weights
from tests.hostile.makers import BUILD, call, items, mapping, read_all, sequence, tensor, text, torch_file
from tests.hostile.makers import name as named
from tests.real import makers
from tests.real.checks import STATE, assert_close, assert_same, each_form, load


@pytest.fixture
def importable(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder on the path of this process: what a reader would import, it could."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("somebodys_net", None)


def assert_not_imported(folder: Path) -> None:
    assert not (folder / "imported").exists()
    assert "somebodys_net" not in sys.modules


@pytest.mark.parametrize("parallel", [False, True], ids=["plain", "DataParallel"])
@each_form
def test_a_whole_module_gives_its_state_dict_and_nothing_of_it_is_imported(
    write, parallel, run, there_and_back, importable, tmp_path
):
    path = tmp_path / "net.pth"
    expected = makers.whole_module(importable, lambda model: write(path, model), parallel=parallel)
    importlib.invalidate_caches()
    found = run("inspect", path, "--json").json
    assert (found["source"]["container"], found["source"]["tensors"]) == ("torch", len(expected))
    done = run("quantize", path, "-s", "keep", "--json", "-o", "keep.safetensors")
    assert done.exit_code == 0, done.stderr
    class_name = "torch.nn.parallel.data_parallel.DataParallel" if parallel else "somebodys_net.Net"
    assert any(class_name in warning for warning in done.json["warnings"])
    assert_same(load_file(path), expected)
    assert_same(load(there_and_back(path, "-s", "keep")), expected)
    assert_close(load(there_and_back(path)), expected)
    assert_not_imported(importable)


@pytest.mark.parametrize("key", ["model", "state_dict", "net", "module"])
@each_form
def test_a_whole_module_under_a_usual_key_gives_its_state_dict(write, key, run, there_and_back, importable, tmp_path):
    path = tmp_path / "net.pth"
    expected = makers.whole_module(
        importable, lambda model: write(path, {"epoch": 3, key: model, "losses": (0.5, 0.25), 7: "seven"})
    )
    importlib.invalidate_caches()
    found = load(there_and_back(path, "-s", "keep"))
    assert [*found] == ["epoch", key, "losses", 7]
    assert (found["epoch"], found["losses"], found[7]) == (3, (0.5, 0.25), "seven")
    assert_same(found[key], expected)
    assert_not_imported(importable)


@each_form
def test_an_optimizer_beside_a_whole_module_stays_an_optimizer(write, run, there_and_back, importable, tmp_path):
    path = tmp_path / "net.pth"
    moments = {"state": {0: {"exp_avg": weights(30, seed=90)}}, "param_groups": [{"lr": 0.1}]}
    expected = makers.whole_module(importable, lambda model: write(path, {"model": model, "optimizer": moments}))
    report = run("quantize", path, "--json").json
    assert [row["name"] for row in report["tensors"] if row["status"] == "dropped"] == ["optimizer.state.0.exp_avg"]
    found = load(there_and_back(path, "-s", "keep", "--keep-extras"))
    assert_same(found["model"], expected)
    assert same(found["optimizer"]["state"][0]["exp_avg"], moments["state"][0]["exp_avg"])
    assert_not_imported(importable)


@each_form
def test_a_tie_inside_a_whole_module_is_one_again(write, run, there_and_back, importable, tmp_path):
    path = tmp_path / "net.pth"
    makers.whole_module(importable, lambda model: write(path, model))
    rows = run("inspect", path, "--json").json["tensors"]
    assert {row["name"]: row["tied_to"] for row in rows if row["tied_to"]} == {"head.weight": "embed.weight"}
    found = load(there_and_back(path))
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


@each_form
def test_a_whole_module_whose_source_is_gone_is_read_by_the_installed_program(write, installed, tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    path = tmp_path / "net.pth"
    expected = makers.whole_module(folder, lambda model: write(path, model))
    (folder / "somebodys_net.py").write_text(makers.NET)
    done = installed("quantize", path, "-s", "keep", "-o", "s.safetensors", env={"PYTHONPATH": str(folder)}, cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert not (folder / "imported").exists()
    (folder / "somebodys_net.py").unlink()
    again = installed("quantize", path, "-o", "t.safetensors")
    assert again.exit_code == 0, again.stderr
    assert "somebodys_net.Net" in again.stdout + again.stderr
    assert_same(load_file(folder / "s.safetensors"), expected)
    assert_close(load_file(tmp_path / "t.safetensors"), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@each_form
def test_modules_of_torch_itself_are_whole_modules_as_well(write, there_and_back, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.utils.weight_norm(torch.nn.Conv1d(64, 80, 3)),
            norm=torch.nn.BatchNorm1d(80),
            attention=torch.nn.TransformerEncoderLayer(80, 4, dim_feedforward=96),
            recurrent=torch.nn.GRU(80, 48, bidirectional=True),
        )
    )
    path = write(tmp_path / "m.pth", model)
    expected = OrderedDict((key, value.detach()) for key, value in model.state_dict().items())
    assert "conv.weight_g" in expected
    assert_same(load_file(path), expected)
    assert_close(load(there_and_back(path)), expected)


def test_a_module_of_2018_has_no_set_of_buffers_that_are_not_stored(tmp_path):
    """Its state has `_parameters`, `_buffers`, `_modules` and a handful of hooks, in an order of its own."""
    parameter = call("torch._utils._rebuild_parameter", tensor(), b"\x88", call("collections.OrderedDict"))
    empty = call("collections.OrderedDict")

    def module(kind: str, parameters: bytes, buffers: bytes, modules: bytes) -> bytes:
        state = {"_backend": call("torch.nn.backends.thnn._get_thnn_function_backend"), "training": b"\x88"}
        state |= {"_parameters": parameters, "_buffers": buffers, "_backward_hooks": empty, "_modules": modules}
        made = named("copy_reg._reconstructor") + sequence(named(kind), named("__builtin__.object"), b"N") + b"R"
        return made + mapping(state) + BUILD

    def ordered(**values: bytes) -> bytes:
        return call("collections.OrderedDict", items(*(items(text(key), value) for key, value in values.items())))

    inner = module("torch.nn.modules.linear.Linear", ordered(weight=parameter, bias=b"N"), empty, empty)
    root = module("somebodys.Net", empty, ordered(mean=tensor()), ordered(layer=inner, relu=b"N"))
    path = torch_file(tmp_path / "m.pth", root)
    assert [*read_all(path).tensors] == ["mean", "layer.weight"]
    source = open_source(path)
    source.close()
    assert any("somebodys.Net" in warning for warning in source.warnings)


def test_a_module_that_holds_itself_or_a_crowd_of_modules_ends(tmp_path):
    from tests.hostile.makers import memoized, recalled

    state = {
        "_parameters": mapping({"w": tensor()}),
        "_buffers": mapping({}),
        "_modules": mapping({"again": recalled(1)}),
    }
    loop = memoized(call("a.Net"), 1) + mapping(state) + BUILD
    twins = memoized(call("a.Net") + mapping({"_parameters": mapping({"w": tensor()})}) + BUILD, 0)
    for level in range(1, 60):
        modules = mapping({"a": recalled(level - 1), "b": recalled(level - 1)})
        state = {"_parameters": mapping({}), "_buffers": mapping({}), "_modules": modules}
        twins += b"0" + memoized(call("a.Net") + mapping(state) + BUILD, level)
    for number, opcodes in enumerate((loop, twins)):
        path = torch_file(tmp_path / f"{number}.pth", opcodes)
        try:
            read_all(path)
        except program.ModelzipError as error:
            assert "m.pth" not in str(error)


@each_form
def test_a_module_among_hyper_parameters_is_no_model(write, run, importable, tmp_path):
    path = tmp_path / "m.ckpt"
    makers.whole_module(
        importable, lambda model: write(path, {"state_dict": STATE, "hyper_parameters": {"backbone": model, "lr": 0.1}})
    )
    done = run("quantize", path, "--json")
    assert done.exit_code == 0, done.stderr
    assert {row["name"] for row in done.json["tensors"]} == {*STATE}
    assert any("somebodys_net.Net" in warning for warning in done.json["warnings"])
    assert_not_imported(importable)
