"""Statistics in plans: what they change is in file and report; a file of which no use is made is refused."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from safetensors.torch import save_file

from modelzip_cli import load_file, tensors
from modelzip_cli.kernels import jit
from modelzip_cli.recipe import Recipe
from modelzip_cli.schemes import ecq
from modelzip_cli.single import Aid, Settings, compress_file
from modelzip_cli.statistics import SENSITIVITY
from tests.checkpoints import weights
from tests.measured import hessian_of, inputs_of, output_error, statistics_file
from tests.test_format_page import manifest_of

MODEL = {"layers.0.weight": weights(96, 80), "layers.1.weight": weights(64, 96, seed=1), "norm.weight": weights(80)}
INPUTS = inputs_of(80)
HESSIAN = {"layers.0.weight:hessian": hessian_of(INPUTS)}
FISHER = {"layers.0.weight:fisher": np.ones((96, 80), np.float32)}
SENSITIVITIES = {
    "layers.0.weight:sensitivity": np.float32([[4.0]]),
    "layers.1.weight:sensitivity": np.float32([[0.25]]),
}


@pytest.fixture
def environment(environment):
    """With compiled kernels, which the session compiles once: numpy gives the same and takes its time."""
    return environment | {jit.CHOICE: "numba"}


@pytest.fixture
def folder(tmp_path):
    save_file(MODEL, tmp_path / "m.safetensors")
    return tmp_path


def save(folder, arrays):
    statistics_file(folder / "s.safetensors", arrays).close()


@pytest.mark.parametrize("scheme", ["int3-channel", "ecq-s0.5"])
def test_weights_with_a_hessian_are_rounded_with_feedback_and_the_report_says_which(folder, modelzip, scheme):
    save(folder, HESSIAN)
    asked = ["quantize", "m.safetensors", "--scheme", scheme, "--json"]
    run = modelzip(*asked, "--statistics", "s.safetensors", "-o", "fed.safetensors")
    assert (run.exit_code, run.stderr) == (0, "")
    assert modelzip(*asked, "-o", "plain.safetensors").exit_code == 0
    assert {row["name"]: row["feedback"] for row in run.json["tensors"]} == {
        "layers.0.weight": True,
        "layers.1.weight": False,
        "norm.weight": False,
    }
    fed, plain = (load_file(folder / f"{name}.safetensors") for name in ("fed", "plain"))
    weight = MODEL["layers.0.weight"].numpy()
    errors = [output_error(INPUTS, weight, each["layers.0.weight"].numpy()) for each in (fed, plain)]
    assert errors[0] < 0.8 * errors[1]
    if scheme != "ecq-s0.5":  # its tables are those of all tensors
        assert (fed["layers.1.weight"] == plain["layers.1.weight"]).all()
    with closing(statistics_file(folder / "s.safetensors", HESSIAN)) as statistics:
        assert manifest_of(folder / "fed.safetensors")["aid"] == {"statistics": statistics.sha256}


def test_a_file_comes_out_as_its_codes_say_where_the_last_slab_of_a_tensor_is_turned(tmp_path, monkeypatch):
    """127 rows are slabs of 64 and 63: only the latter would have its paths along the rows."""
    monkeypatch.setattr(tensors, "TALL_WEIGHTS", 64 * 70)
    monkeypatch.setattr(ecq, "SHORT_PATH", 64)
    weight, inputs = weights(127, 70), inputs_of(70)
    save_file({"w": weight}, tmp_path / "m.safetensors")
    with closing(statistics_file(tmp_path / "s.safetensors", {"w:hessian": hessian_of(inputs)})) as statistics:
        out = tmp_path / "out.safetensors"
        aid = Aid(statistics)
        report = compress_file(
            tmp_path / "m.safetensors", out, Recipe("ecq-s0.5"), Settings(), command="quantize", aid=aid
        )
    restored = load_file(out)["w"]
    assert report.tensors[0].scheme == "ecq-s0.5-t1"
    assert report.tensors[0].feedback
    noise = (restored - weight).double().square().sum() / weight.double().square().sum()
    assert -10 * np.log10(float(noise)) == pytest.approx(report.tensors[0].sqnr_db, abs=0.001)


USELESS = [
    (
        ["quantize", "-s", "fp16"],
        HESSIAN,
        "holds hessian; none of the schemes asked for rounds with feedback: int4-g64 and ecq do",
    ),
    (["quantize", "-s", "binary"], {**HESSIAN, **SENSITIVITIES}, "holds hessian, sensitivity; none of the schemes"),
    (
        ["quantize", "-s", "int4"],
        FISHER,
        "holds fisher, but no hessian of these weights; --save-statistics writes it with --data",
    ),
    (
        ["quantize", "-s", "int4"],
        {"other.weight:hessian": np.eye(80, dtype=np.float32)},
        "holds hessian, but no hessian of these weights; --save-statistics writes it with --data",
    ),
    (["quantize", "-s", "int4", "--only", "layers.1.*"], HESSIAN, "holds hessian, but no hessian of these weights"),
    (["compress", "--bpw", "3"], FISHER, "holds fisher, but no hessian or sensitivity of these weights"),
    (["compress", "--min-sqnr", "20"], SENSITIVITIES, "holds sensitivity, but no hessian of these weights"),
    (["compress", "--lossless"], HESSIAN, "holds hessian; none of the schemes asked for rounds with feedback"),
    (
        ["prune", "--sparsity", "0.5"],
        HESSIAN,
        "holds hessian; --criterion magnitude asks for none: taylor, fisher, wanda, sparsegpt do",
    ),
    (["prune", "--sparsity", "0.5", "--criterion", "random"], FISHER, "holds fisher; --criterion random asks for none"),
    (["prune", "--sparsity", "0.5", "--criterion", "fisher"], HESSIAN, "holds no fisher of these weights"),
]


@pytest.mark.parametrize(
    ("command", "arrays", "message"), USELESS, ids=lambda each: " ".join(each) if isinstance(each, list) else ""
)
def test_statistics_of_which_no_use_is_made_are_refused_in_one_line(folder, modelzip, command, arrays, message):
    save(folder, arrays)
    before = sorted(folder.iterdir())
    run = modelzip(command[0], "m.safetensors", *command[1:], "--statistics", "s.safetensors")
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)
    assert f"s.safetensors: {message}" in run.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "arrays"),
    [
        (["quantize", "-s", "int4"], {**HESSIAN, **FISHER}),
        (["compress", "--bpw", "4"], SENSITIVITIES),
        (["compress", "--min-sqnr", "20"], HESSIAN),
        (["prune", "--sparsity", "0.5", "--criterion", "sparsegpt"], HESSIAN),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_statistics_of_which_some_use_is_made_are_taken(folder, modelzip, command, arrays):
    save(folder, arrays)
    run = modelzip(command[0], "m.safetensors", *command[1:], "--statistics", "s.safetensors", "-o", "out.safetensors")
    assert (run.exit_code, run.stderr) == (0, "")
    assert set(manifest_of(folder / "out.safetensors")["aid"]) == {"statistics"}


NEAR = 0.002
LAYERS = {f"layers.{n}.weight": weights(256, 256, seed=n).bfloat16() for n in range(3)}


@pytest.mark.parametrize(
    ("goal", "kinds"),
    [(["--bpw", "3.5"], "sensitivity"), (["--bpw", "3.5"], "hessian sensitivity"), (["--ratio", "5x"], "sensitivity")],
    ids=str,
)
def test_goals_are_met_with_statistics_too(tmp_path, modelzip, goal, kinds):
    save_file(LAYERS, tmp_path / "m.safetensors")
    arrays = {f"layers.{n}.weight:{SENSITIVITY}": np.float32([[16.0**n]]) for n in range(3)}
    if "hessian" in kinds:
        arrays |= {f"layers.{n}.weight:hessian": hessian_of(inputs_of(256, n)) for n in range(1)}
    save(tmp_path, arrays)
    run = modelzip("compress", "m.safetensors", *goal, "--statistics", "s.safetensors", "-o", "o.safetensors", "--json")
    assert (run.exit_code, run.stderr) == (0, "")
    if goal[0] == "--bpw":
        assert 3.5 * (1 - NEAR) <= run.json["totals"]["bits_per_weight"] <= 3.5
    else:
        most = (tmp_path / "m.safetensors").stat().st_size / 5
        assert most * (1 - NEAR) <= (tmp_path / "o.safetensors").stat().st_size <= most
    bits = [row["bits_per_weight"] for row in run.json["tensors"]]
    assert bits == sorted(bits)
    assert bits[2] > bits[0] + 2
