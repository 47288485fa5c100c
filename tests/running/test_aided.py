"""quantize, prune and compress with a model on data: nearer to the dense model, judged, and nothing left where not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

import modelzip_cli
from modelzip_cli.running import evaluate
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.evaluate import chosen_rows
from modelzip_cli.running.ladder import Network, open_model
from tests.conftest import SAMPLES, Run
from tests.net import FEATURES, Net
from tests.test_report_schema import assert_is

NET = f"{Path(__file__).parents[1] / 'net.py'}:Net"
MLP, DIGITS = SAMPLES / "digits_mlp.pth", SAMPLES / "digits_mlp_test.npz"
LM = ("--arch", f"{SAMPLES / 'train.py'}:DocsLM", "--arch-args", '{"width": 64, "layers": 1, "heads": 2}')
PRUNED = ("--sparsity", "0.8")
NUMPY = {"MODELZIP_KERNELS": "numpy"}  # kernels are compiled once a session, but not for all of this
NUMBA = {"MODELZIP_KERNELS": "numba"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; latency is measured once."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(evaluate, "LATENCY_RUNS", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Digits to learn from and others to test on."""
    folder = tmp_path_factory.mktemp("digits")
    data = np.load(DIGITS)
    for name, rows in (("train", slice(0, 200)), ("test", slice(200, 340))):
        np.savez(folder / f"{name}.npz", **{key: array[rows] for key, array in data.items()})
    return folder / "train.npz", folder / "test.npz"


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small language model and tokens."""
    from train import DocsLM

    folder = tmp_path_factory.mktemp("lm")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = DocsLM(64, layers=1, heads=2)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(4)
        tokens = torch.randint(97, (24, 17))
    tensors = {name: tensor for name, tensor in net.state_dict().items() if name != "head.weight"}
    save_file(tensors, folder / "lm.safetensors")
    np.savez(folder / "tokens.npz", x=tokens[:, :-1].numpy(), y=tokens[:, 1:].numpy())
    return folder / "lm.safetensors", folder / "tokens.npz"


@pytest.fixture
def aided(modelzip: Callable[..., Run], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a command to `out.safetensors`, or `to`; gives the report."""

    def run(command: str, *arguments: object, to: str = "out.safetensors", env: Any = NUMPY) -> dict[str, Any]:
        done = modelzip(command, *arguments, "-o", tmp_path / to, "-f", "-j", "1", "--json", env=env)
        assert done.exit_code == 0, done.stderr
        assert_is("report", done.json)
        return done.json

    return run


def scores(path: Path) -> torch.Tensor:
    """What the perceptron of a checkpoint gives for digits that nothing was learnt from, without the program."""
    found = modelzip_cli.load_file(path)
    x = torch.from_numpy(np.load(DIGITS)["x"][200:340]).float()
    for n in (0, 2, 4):
        x = torch.nn.functional.linear(x, found[f"layers.{n}.weight"], found[f"layers.{n}.bias"])
        x = x.relu() if n < 4 else x
    return x.log_softmax(1)


def kl(path: Path) -> float:
    """From the dense perceptron, nats."""
    q, p = scores(MLP), scores(path)
    return float((q.exp() * (q - p)).sum(1).mean())


def statuses(report: dict[str, Any], key: str) -> list[str]:
    """Names of the tensors of which something is said."""
    return [row["name"] for row in report["tensors"] if row[key]]


def stages(report: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in report["evaluation"]["stages"]]


def sparsity(path: Path) -> dict[str, float]:
    return {name: float((tensor == 0).float().mean()) for name, tensor in modelzip_cli.load_file(path).items()}


# --- quantize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int3", "int2", "nf4", "codebook2"])
def test_quantized_with_data_is_nearer_to_the_dense_model(aided, modelzip, digits, tmp_path, scheme):
    plain = tmp_path / "plain.safetensors"
    assert modelzip("quantize", MLP, "-s", scheme, "-o", plain, env=NUMPY).exit_code == 0
    report = aided("quantize", MLP, "-s", scheme, "--data", digits[0], "--test-data", digits[1])
    assert statuses(report, "feedback") == ["layers.0.weight", "layers.2.weight"]
    ours = kl(tmp_path / "out.safetensors")
    assert ours < kl(plain)
    assert report["evaluation"]["after"]["kl"] == pytest.approx(ours, rel=1e-3)
    assert report["data"] == str(digits[1])
    assert report["network"].startswith("perceptron of 3 layers, ReLU between them")
    assert report["notes"] == []


def test_the_report_tells_of_every_stage(aided, digits):
    report = aided("prune", MLP, "--sparsity", "0.7", "--data", digits[0])
    found = report["evaluation"]
    assert stages(report) == ["dense", "as is", "repaired"]
    assert (found["before"], found["after"]) == (found["stages"][0], found["stages"][-1])
    assert found["before"]["kl"] == 0
    assert found["before"]["agreement"] == 1
    assert found["after"]["kl"] < found["stages"][1]["kl"]
    assert report["data"] == f"20 held-out examples of {digits[0]}"
    reasons = {row["name"]: row["reason"] for row in report["tensors"]}
    assert reasons["layers.0.bias"] == "bias corrected"
    assert report["output"]["bytes"] == found["after"]["bytes"]


def test_many_bits_are_not_repaired(aided, digits):
    assert stages(aided("quantize", MLP, "-s", "int8", "--data", digits[0])) == ["dense", "as is"]


def test_batchnorm_is_estimated_again(aided, tmp_path):
    torch.manual_seed(0)
    net, x = Net().train(), torch.randn(300, FEATURES) + 1
    with torch.no_grad():
        net.head.weight *= 8
        for _ in range(40):
            net(x)
        save_file(net.eval().state_dict(), tmp_path / "net.safetensors")
        np.savez(tmp_path / "x.npz", x=x.numpy())
    network = ("--arch", NET, "--data", tmp_path / "x.npz")
    report = aided("prune", tmp_path / "net.safetensors", *PRUNED, *network)
    assert stages(report) == ["dense", "as is", "repaired"]
    _, before, after = report["evaluation"]["stages"]
    assert after["kl"] < before["kl"] / 2
    changed = {row["name"]: row["status"] for row in report["tensors"] if row["reason"] == "BatchNorm re-estimated"}
    assert changed == {"norm.running_mean": "kept", "norm.running_var": "kept"}
    found, source = (modelzip_cli.load_file(tmp_path / name) for name in ("out.safetensors", "net.safetensors"))
    different = {name for name in source if not torch.equal(found[name], source[name])}
    assert different == {"first.weight", *changed}


@pytest.mark.parametrize("command", [("quantize", "-s", "int3"), ("prune", *PRUNED, "--criterion", "fisher")])
def test_the_restored_output_does_exactly_what_the_report_says(aided, modelzip, digits, tmp_path, command):
    report = aided(*command, MLP, "--data", digits[0], "--test-data", digits[1])
    assert modelzip("restore", tmp_path / "out.safetensors", "-o", tmp_path / "back.pth").exit_code == 0
    dense, model = (open_model(path, Network()) for path in (MLP, tmp_path / "back.pth"))
    examples = open_data(str(digits[1]), model.wanted, DataOptions())
    rows = chosen_rows(examples, None)
    dense, model = (evaluate.prepared(each, examples, rows) for each in (dense, model))
    found = evaluate.evaluate(model, examples, rows, reference=dense, latency=False).to_json()
    stated = report["evaluation"]["after"]
    of_file = ("bytes", "latency")
    assert {key: stated[key] for key in found if key not in of_file} == {
        key: value for key, value in found.items() if key not in of_file
    }


@pytest.mark.parametrize("to", ["out.pth", "out.safetensors"])
def test_a_dense_output_is_judged_too(aided, digits, tmp_path, to):
    report = aided("quantize", MLP, "-s", "fp8", "--layout", "dense", "--data", digits[0], to=to)
    assert report["output"]["layout"] == "dense"
    assert report["evaluation"]["after"]["kl"] >= 0


def test_the_same_bytes_every_time(aided, digits, tmp_path):
    for name in ("one", "other"):
        aided("quantize", MLP, "-s", "int2", "--data", digits[0], to=f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


# --- prune ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda", "sparsegpt", "magnitude"])
def test_pruned_by_what_the_model_does(aided, digits, tmp_path, criterion):
    scope = ["--scope", "layer"] if criterion in ("wanda", "sparsegpt") else []
    aided("prune", MLP, *PRUNED, "--criterion", criterion, *scope, "--data", digits[0], "--test-data", digits[1])
    found = sparsity(tmp_path / "out.safetensors")
    assert (6400 * found["layers.0.weight"] + 5000 * found["layers.2.weight"]) / 11400 == pytest.approx(0.8, abs=1e-3)
    assert kl(tmp_path / "out.safetensors") < 3.5


def dead_inputs(folder: Path) -> tuple[Path, Path]:
    """A network whose largest weights are on inputs that are always 0, and data: magnitude keeps just these."""
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(60, FEATURES)
    x[:, :8] = 0
    with torch.no_grad():
        net.first.weight[:, :8] *= 10
        net.head.weight *= 8
        save_file(net.state_dict(), folder / "net.safetensors")
        np.savez(folder / "x.npz", x=x.numpy(), y=net(x).argmax(1).numpy())
    return folder / "net.safetensors", folder / "x.npz"


def test_auto_takes_fisher_where_large_weights_do_nothing(aided, tmp_path):
    path, data = dead_inputs(tmp_path)
    network = ("--arch", NET, "--data", data)
    report = aided("prune", path, "--sparsity", "0.5", "--criterion", "auto", *network)
    (note,) = report["notes"]
    assert note.startswith("auto took fisher: KL from the dense model ")
    assert note.endswith(" with magnitude")
    assert report["recipe"]["criterion"] == "fisher"
    aided("prune", path, "--sparsity", "0.5", "--criterion", "fisher", *network, to="fisher.safetensors")
    ours, theirs = (modelzip_cli.load_file(tmp_path / name) for name in ("out.safetensors", "fisher.safetensors"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_auto_takes_magnitude_where_that_is_nearer(aided, digits):
    report = aided("prune", MLP, "--sparsity", "0.9", "--criterion", "auto", "--data", digits[0])
    note = report["notes"][0].split()
    assert note[2] == "magnitude:"
    assert "criterion" not in report["recipe"]  # the default
    assert float(note[8].rstrip(",")) < float(note[9])


def test_recovered_weights_keep_their_zeros_in_the_file(aided, digits, tmp_path):
    asked = ("prune", MLP, *PRUNED, "--data", digits[0], "--test-data", digits[1])
    aided(*asked, to="pruned.safetensors")
    report = aided(*asked, "--recover", "20", "--seed", "3")
    assert stages(report)[-1] == "recovered"
    ours, theirs = (modelzip_cli.load_file(tmp_path / name) for name in ("out.safetensors", "pruned.safetensors"))
    for name in ("layers.0.weight", "layers.2.weight"):
        assert torch.equal(ours[name] == 0, theirs[name] == 0)
        assert not torch.equal(ours[name], theirs[name])
    assert kl(tmp_path / "out.safetensors") < kl(tmp_path / "pruned.safetensors")
    assert report["totals"]["sparsity"] == pytest.approx(9120 / 11400, abs=1e-4)
    first = (tmp_path / "out.safetensors").read_bytes()
    aided(*asked, "--recover", "20", "--seed", "3")
    assert (tmp_path / "out.safetensors").read_bytes() == first


def test_recovered_and_quantized(aided, digits, tmp_path):
    aided("prune", MLP, *PRUNED, "--scheme", "int4", "--data", digits[0], "--recover", "10")
    assert sparsity(tmp_path / "out.safetensors")["layers.0.weight"] > 0.5


# --- compress -------------------------------------------------------------------------------------------------------


def test_compressed_with_data_is_nearer_at_the_same_size(aided, modelzip, digits, tmp_path):
    asked = ("compress", MLP, "--bpw", "2")
    aided(*asked, to="plain.safetensors", env=NUMBA)
    data = ("--data", digits[0], "--test-data", digits[1])
    report = aided(*asked, *data, "--save-statistics", tmp_path / "s", env=NUMBA)
    assert kl(tmp_path / "out.safetensors") < kl(tmp_path / "plain.safetensors")
    assert report["totals"]["bits_per_weight"] <= 2
    with safe_open(tmp_path / "s", "np") as file:
        kinds = {name.rpartition(":")[2] for name in file.keys()}  # noqa: SIM118
    assert kinds == {"hessian", "sensitivity"}


# --- gates and what is left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["accuracy=1.01", "agreement=1.5", "perplexity-ratio=9"])
def test_a_model_that_does_too_little_is_not_written(modelzip, digits, tmp_path, scratch, gate):
    done = modelzip(
        "quantize", MLP, "-s", "int3", "--data", digits[0], "--fail-under", gate, "-o", "out.safetensors", "--json"
    )
    assert done.exit_code == 4
    name, _, limit = gate.partition("=")
    assert f"{name} is " in done.json["error"]["message"]
    assert f"--fail-under asks for {limit}; nothing was written" in done.json["error"]["message"]
    assert os.listdir(tmp_path) == ["scratch"]
    assert os.listdir(scratch) == []


def test_a_gate_that_is_met_is_in_the_report(aided, digits, scratch):
    report = aided("quantize", MLP, "-s", "int4", "--data", digits[0], "--fail-under", "accuracy=0.5")
    (gate,) = report["gates"]
    assert (gate["metric"], gate["limit"], gate["passed"]) == ("accuracy", 0.5, True)
    assert gate["value"] == pytest.approx(report["evaluation"]["after"]["accuracy"], abs=1e-6)
    assert os.listdir(scratch) == []


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "-s", "int3"),
        ("prune", *PRUNED, "--criterion", "auto", "--recover", "5"),
    ],
)
def test_a_dry_run_writes_nothing(modelzip, digits, tmp_path, scratch, command):
    done = modelzip(*command, MLP, "--data", digits[0], "--save-statistics", "s", "--dry-run", env=NUMPY)
    assert done.exit_code == 0, done.stderr
    assert os.listdir(tmp_path) == ["scratch"]
    assert os.listdir(scratch) == []


def test_a_failure_leaves_nothing(modelzip, digits, tmp_path, scratch):
    done = modelzip(
        "quantize", MLP, "-s", "int3", "--data", digits[0], "--set", "nothing=int4", "-o", "out.safetensors"
    )
    assert done.exit_code == 2
    assert os.listdir(tmp_path) == ["scratch"]
    assert os.listdir(scratch) == []


# --- statistics files -----------------------------------------------------------------------------------------------


def codes_of(path: Path) -> dict[str, bytes]:
    """What is stored, without the manifest."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def test_statistics_alone_give_the_codes_that_data_gave(aided, lm, tmp_path):
    path, tokens = lm
    asked = ("quantize", path, "-s", "int8")
    direct = aided(*asked, *LM, "--data", tokens, "--save-statistics", tmp_path / "s", to="direct.safetensors")
    assert stages(direct) == ["dense", "as is"]
    report = aided(*asked, "--statistics", tmp_path / "s")
    assert len(statuses(report, "feedback")) == 5  # the tied embedding too
    assert "evaluation" not in report
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()
    aided(*asked, to="plain.safetensors")
    assert codes_of(tmp_path / "out.safetensors") != codes_of(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "-s", "int4"),
        ("prune", *PRUNED, "--criterion", "fisher"),
        ("prune", *PRUNED, "--criterion", "taylor"),
        ("prune", *PRUNED, "--criterion", "sparsegpt", "--scope", "layer"),
    ],
)
def test_matrices_are_the_same_with_statistics_alone_also_where_biases_were_repaired(aided, digits, tmp_path, command):
    aided(*command, MLP, "--data", digits[0], "--save-statistics", tmp_path / "s", to="direct.safetensors")
    aided(*command, MLP, "--statistics", tmp_path / "s")
    ours, theirs = (modelzip_cli.load_file(tmp_path / name) for name in ("out.safetensors", "direct.safetensors"))
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert all(name.endswith("bias") for name in different)


@pytest.fixture(scope="session")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a statistics file for the perceptron, or what is like one."""

    def write(path: Path, **changes: Any) -> Path:
        arrays = {
            f"layers.{n}.weight:hessian": np.eye(size, dtype=np.float32) for n, size in ((0, 64), (2, 100), (4, 50))
        }
        arrays |= {
            f"layers.{n}.weight:fisher": np.ones(shape, np.float32)
            for n, shape in ((0, (100, 64)), (2, (50, 100)), (4, (10, 50)))
        }
        for name, change in changes.items():
            arrays[f"layers.0.weight:{name}"] = change(arrays[f"layers.0.weight:{name}"])
        save_arrays(arrays, path)
        return path

    return write


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[1, 1] = value
        return array

    return change


def without_root(array: np.ndarray) -> np.ndarray:
    array[0, 1] = array[1, 0] = 50
    return array


SPARSEGPT = ("prune", *PRUNED, "--criterion", "sparsegpt", "--scope", "layer")
QUANTIZE, PRUNE = ("quantize", "-s", "int4"), ("prune", *PRUNED, "--criterion", "fisher")


@pytest.mark.parametrize(
    ("command", "changes", "code", "problem"),
    [
        (QUANTIZE, {}, 0, ""),
        (PRUNE, {}, 0, ""),
        (PRUNE, {"fisher": lambda a: a.reshape(-1)}, 0, ""),
        (PRUNE, {"fisher": lambda a: a.astype(np.float64)}, 0, ""),
        (QUANTIZE, {"hessian": with_value(np.nan)}, 1, "holds values that it cannot have"),
        (QUANTIZE, {"hessian": with_value(np.inf)}, 1, "holds values that it cannot have"),
        (QUANTIZE, {"hessian": without_root}, 1, "layers.0.weight:hessian is no mean of products x x^T"),
        (SPARSEGPT, {"hessian": without_root}, 1, "layers.0.weight:hessian is no mean of products x x^T"),
        (QUANTIZE, {"hessian": np.zeros_like}, 0, ""),
        (QUANTIZE, {"hessian": lambda a: a[1:]}, 2, "are these the statistics of another model?"),
        (QUANTIZE, {"hessian": lambda a: a.astype(np.int32)}, 2, "is i32 [64, 64], for a weight"),
        (PRUNE, {"fisher": with_value(np.nan)}, 1, "holds values that it cannot have"),
        (PRUNE, {"fisher": with_value(-1)}, 1, "holds values that it cannot have"),
        (PRUNE, {"fisher": lambda a: a[:, 1:]}, 2, "are these the statistics of another model?"),
        (PRUNE, {"fisher": lambda a: a.astype(np.uint8)}, 2, "is u8 [100, 64], for a weight"),
    ],
)
def test_statistics_that_are_wrong_are_one_line(modelzip, statistics, tmp_path, command, changes, code, problem):
    path = statistics(tmp_path / "s", **changes)
    done = modelzip(*command, MLP, "--statistics", path, "-o", "out.safetensors", "--no-progress")
    assert done.exit_code == code, done.stderr
    if code:
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", ["cut", "empty", "text", "model", "missing"])
def test_files_that_are_no_statistics_are_one_line(modelzip, statistics, tmp_path, content):
    path = statistics(tmp_path / "s")
    whole = path.read_bytes()
    path.unlink()
    if content == "model":
        save_file(modelzip_cli.load_file(MLP), path)
    elif content != "missing":
        path.write_bytes({"cut": whole[:-100], "empty": b"", "text": b"no statistics"}[content])
    done = modelzip("quantize", MLP, "-s", "int4", "--statistics", path, "-o", "out.safetensors", "--no-progress")
    assert done.exit_code in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_statistics_that_are_there_are_replaced_only_with_force(modelzip, digits, tmp_path):
    (tmp_path / "s").write_bytes(b"mine")
    asked = ("quantize", MLP, "-s", "int4", "--data", digits[0], "--save-statistics", "s", "-o", "out.safetensors")
    done = modelzip(*asked)
    assert done.exit_code == 2
    assert "s exists; -f replaces it" in done.stderr
    assert (tmp_path / "s").read_bytes() == b"mine"
    assert not (tmp_path / "out.safetensors").exists()
    assert modelzip(*asked, "-f").exit_code == 0
    assert (tmp_path / "s").read_bytes() != b"mine"


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("quantize", "--arch", NET), "--arch says how the model is run: --data says on what"),
        (("quantize", "--test-data", DIGITS), "--test-data says how the model is run"),
        (("quantize", "--save-statistics", "s"), "--save-statistics says how the model is run"),
        (("prune", *PRUNED, "--recover", "5"), "--recover says how the model is run"),
        (("quantize", "--data", DIGITS, "--recover", "5"), "No such option"),
        (("prune", *PRUNED, "--criterion", "fisher"), "--criterion fisher needs to know what the model does: --data"),
        (("prune", *PRUNED, "--criterion", "wanda"), "--criterion wanda needs to know what the model does"),
        (("prune", *PRUNED, "--criterion", "auto"), "--criterion auto compares what the model does: --data"),
        (("prune", *PRUNED, "--criterion", "auto", "--statistics", "s"), "--criterion auto compares what the model"),
        (("prune", *PRUNED, "--criterion", "taylor", "--statistics", "s"), "holds no taylor of these weights"),
        (("quantize", "--data", DIGITS, "--statistics", "s", "--save-statistics", "t"), "are there already"),
        (("quantize", "--fail-under", "accuracy=0.5"), "accuracy"),
        (
            ("quantize", MLP, "--data", DIGITS, "--save-statistics", "t", "--output-dir", "d"),
            "is one file, of one checkpoint",
        ),
        (("quantize", "--data", DIGITS, "-o", "-"), "the output is judged before it appears: name a file with -o"),
        (("quantize", "--data", "nothing.npz"), "nothing.npz"),
        (("prune", "--depth", "0.5", "--data", DIGITS), "prune in two steps"),
    ],
)
def test_what_does_not_go_together_is_refused(modelzip, statistics, tmp_path, arguments, problem):
    statistics(tmp_path / "s")
    before = sorted(os.listdir(tmp_path))
    command, *options = arguments
    output = () if "-o" in options or "--output-dir" in options else ("-o", "out.safetensors")
    done = modelzip(command, MLP, *options, *output)
    assert done.exit_code == 2, done.stderr
    assert problem in " ".join(done.stderr.split())
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_without_a_network_says_what_to_give(modelzip, classifier, tmp_path):
    done = modelzip("quantize", classifier.path("net.safetensors"), "--data", DIGITS, "-o", "out.safetensors")
    assert done.exit_code == 2
    assert "--arch" in done.stderr
    assert os.listdir(tmp_path) == ["scratch"]


def test_verify_knows_what_a_model_helped_with(aided, modelzip, digits, tmp_path):
    aided("quantize", MLP, "-s", "int3", "--data", digits[0])
    out = tmp_path / "out.safetensors"
    assert modelzip("verify", out).exit_code == 0
    done = modelzip("verify", out, "--against", MLP)
    assert done.exit_code == 2
    assert "was made with the help of a model on data" in done.stderr


# --- several files, directories -------------------------------------------------------------------------------------


def test_several_files_of_one_network(modelzip, classifier, tmp_path):
    for name in ("a", "b"):
        shutil.copy(classifier.path("net.safetensors"), tmp_path / f"{name}.safetensors")
    options = ("--arch", NET, "--data", classifier.path("data.npz"), "--output-dir", "out", "--json")
    done = modelzip("quantize", "a.safetensors", "b.safetensors", "-s", "int4", *options)
    assert done.exit_code == 0, done.stderr
    one, other = done.json["runs"]
    assert one["evaluation"]["after"]["kl"] == other["evaluation"]["after"]["kl"]


def test_a_hugging_face_directory(aided, modelzip, tmp_path, torchvision):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=12, num_labels=3, **small)
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "bert")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "tokens.npz", x=generator.integers(1, 20, (40, 8)), y=generator.integers(0, 3, 40))
    report = aided("quantize", tmp_path / "bert", "-s", "int3", "--data", tmp_path / "tokens.npz", to="small")
    assert len(statuses(report, "feedback")) >= 6
    assert report["evaluation"]["after"]["kl"] < 1
    assert modelzip("verify", tmp_path / "small").exit_code == 0
    assert json.loads((tmp_path / "small" / "config.json").read_text())["model_type"] == "bert"


@pytest.mark.parametrize("tensors", ["both", "head.weight"])
def test_tied_weights_stay_one(aided, modelzip, lm, tmp_path, tensors):
    """Both names in a file, or the second alone: what is stored is one tensor, and zeros stay through training."""
    found = modelzip_cli.load_file(lm[0])
    tied = found.pop("tok.weight")
    found["head.weight"] = tied
    if tensors == "both":
        found["tok.weight"] = tied.clone()
    save_file(found, tmp_path / "tied.safetensors")
    rules = [word for name in found if name[:4] in ("tok.", "head") for word in ("--set", f"{name}=int3")]
    data = (*LM, "--data", lm[1])
    aided("quantize", tmp_path / "tied.safetensors", "-s", "int3", *rules, *data)
    assert modelzip("eval", tmp_path / "out.safetensors", *data, "-j", "1").exit_code == 0
    pruned = ("prune", tmp_path / "tied.safetensors", "--sparsity", "0.6", "--recover", "3", *data)
    aided(*pruned, *(word.replace("int3", "0.5") for word in rules))
    assert sparsity(tmp_path / "out.safetensors")["head.weight"] == pytest.approx(0.5, abs=1e-3)


def test_a_model_none_of_whose_layers_is_seen_is_judged_all_the_same(aided, modelzip, tmp_path, torchvision):
    """GPT-2 multiplies with matrices that lie the other way round."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": 20, "n_positions": 12, "n_embd": 64, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**small, bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    np.savez(tmp_path / "tokens.npz", x=np.random.default_rng(0).integers(1, 20, (40, 8)))
    asked = (tmp_path / "gpt2", "--data", tmp_path / "tokens.npz")
    report = aided("quantize", *asked, "-s", "int3", to="small")
    assert report["notes"] == ["no layer's inputs were seen: weights are rounded one by one"]
    assert statuses(report, "feedback") == []
    assert report["evaluation"]["after"]["kl"] > 0
    done = modelzip("prune", *asked, *PRUNED, "--criterion", "wanda", "-o", "pruned")
    assert done.exit_code == 2
    assert "has no layer that --data tells something of" in done.stderr
