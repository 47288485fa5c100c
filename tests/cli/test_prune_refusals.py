"""What `prune` refuses: one line that says what to do, a documented exit code, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import weights

SHARE = "write a share of the weights, 0 <= share < 1"
S50 = ("--sparsity", "0.5")
WRONG = [  # the arguments, what is said, the exit code
    ([], "how much? --sparsity 0.5, --threshold 1e-3, --pattern 2:4 or --depth 0.75", 2),
    (["--sparsity", "1.0"], f"--sparsity 1: {SHARE}", 2),
    (["--sparsity=-0.1"], f"--sparsity -0.1: {SHARE}", 2),
    (["--sparsity", "nan"], f"--sparsity nan: {SHARE}", 2),
    (["--sparsity", "inf"], f"--sparsity inf: {SHARE}", 2),
    (["--sparsity", "70"], "not per cent: write 0.7", 2),
    (["--sparsity", "100"], SHARE, 2),
    (["--sparsity", "half"], "--sparsity", 2),
    (["--threshold", "0"], "write a number above 0", 2),
    (["--threshold=-1e-3"], "write a number above 0", 2),
    (["--threshold", "nan"], "write a number above 0", 2),
    (["--threshold", "inf"], "write a number above 0", 2),
    (["--pattern", "4:4"], "N must be at least 1 and below M", 2),
    (["--pattern", "0:4"], "N must be at least 1 and below M", 2),
    (["--pattern", "nonsense"], "write N:M, such as 2:4", 2),
    (["--pattern", "1:7"], "7 does not divide the 64 inputs of layers.0.weight and 1 more", 2),
    ([*S50, "--pattern", "2:4"], "--sparsity and --pattern are two amounts", 2),
    ([*S50, "--threshold", "1e-3"], "--sparsity and --threshold are two amounts", 2),
    (["--threshold", "1e-3", "--pattern", "2:4"], "--threshold and --pattern are two amounts", 2),
    ([*S50, "--scheme", "binary"], "binary has no code for zero", 2),
    ([*S50, "--scheme", "codebook4"], "has no code for zero", 2),
    ([*S50, "--set", "layers.0=binary"], "binary has no code for zero", 2),
    ([*S50, "--scheme", "nope"], "no scheme 'nope'", 2),
    ([*S50, "--scheme", "ecq"], "ecq needs to know how fine", 2),
    ([*S50, "--criterion", "magnitud"], "did you mean 'magnitude'?", 2),
    ([*S50, "--criterion", "nope"], "no criterion 'nope'", 2),
    ([*S50, "--scope", "row"], "there are global and layer", 2),
    (["--pattern", "2:4", "--scope", "layer"], "--scope says how --sparsity is shared", 2),
    ([*S50, "--seed", "1"], "--seed is for --criterion random", 2),
    ([*S50, "--criterion", "random", "--seed=-1"], "write a number from 0", 2),
    ([*S50, "--data", "data.npz", "--seed=-1"], "write a number from 0", 2),
    ([*S50, "--min-keep", "1"], "--min-keep 1: write a share", 2),
    ([*S50, "--min-keep", "nan"], "--min-keep nan: write a share", 2),
    ([*S50, "--min-keep", "0.1", "--scope", "layer"], "--min-keep is a floor under --scope global", 2),
    (["--threshold", "0.1", "--criterion", "random"], "--threshold is about weights; random has other scores", 2),
    ([*S50, "--set", "layers.0=1.0"], f"--set layers.0 1: {SHARE}", 2),
    ([*S50, "--set", "layers.0=70"], "write 0.7", 2),
    ([*S50, "--set", "layers.0=-0.5"], SHARE, 2),
    ([*S50, "--set", "layer.0=0.7"], "the closest name is 'layers.0.weight'", 2),
    ([*S50, "--only", "nothing*"], "matches no tensor", 2),
    ([*S50, "--recipe", "absent.toml"], "cannot read the recipe", 2),
    (["--threshold", "9"], "--threshold 9 would empty tensor layers.0.weight, whose largest weight is 0.125", 3),
    (["--threshold", "1e39"], "would empty tensor layers.0.weight", 3),
    (["--sparsity", "0.99"], "leaves less than --min-keep 0.02 of every tensor; the most is 0.98", 3),
    ([*S50, "--min-keep", "0.6"], "leaves less than --min-keep 0.6", 3),
    (
        ["--sparsity", "0.99999", "--scope", "layer"],
        "of 4,096 weights would be emptied; the most for it is 0.999756",
        3,
    ),
    (["--sparsity", "0.99999", "--min-keep", "0"], "would be emptied", 3),
    ([*S50, "--set", "layers.0=0.99999"], "layers.0.weight of 4,096 weights would be emptied", 3),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers, of which the first is the smaller one, and a classifier."""
    tensors = {f"layers.{n}.weight": weights(64, 64, seed=n) * (1 + n) for n in range(2)}
    tensors["layers.0.weight"].clamp_(-0.06, 0.06)[3, 3] = 0.125
    save_file(tensors | {"lm_head.weight": weights(64, 64)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("arguments", "said", "code"), WRONG, ids=[" ".join(arguments) for arguments, _, _ in WRONG])
def test_a_mistake_is_one_clear_line_and_nothing_is_written(arguments, said, code, modelzip, source, tmp_path):
    before = source.read_bytes()
    run = modelzip("prune", source, *arguments)
    assert (run.exit_code, run.stdout) == (code, "")
    assert said in run.stderr
    assert run.stderr.startswith("modelzip: error: ")
    assert run.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == [source]
    assert source.read_bytes() == before


def test_the_most_that_is_named_can_be_had(modelzip, source):
    for amount in (["--sparsity", "0.98"], ["--sparsity", "0.999755", "--scope", "layer"], ["--threshold", "0.125"]):
        run = modelzip("prune", source, *amount)
        assert (run.exit_code, run.stderr) == (0, ""), amount


RECIPES = {
    'sparsity = "0.5"': "sparsity is not a number",
    "sparsity = true": "sparsity is not a number",
    "sparsity = 1.5": "write 0.015",
    "pattern = 24": "pattern is not text",
    'sparsity = 0.5\npattern = "2:4"': "are two amounts",
    "seed = 3": "how much?",
    'sparsity = 0.5\nseed = 1.5\ncriterion = "random"': "seed is not a whole number",
    'sparsity = 0.5\n[[set]]\nmatch = "a"\namount = "x"': "an amount is not a number",
    'sparsity = 0.5\n[[set]]\nmatch = "a"\namount = 0.5\nscheme = "int4"': "not match and scheme, or match and amount",
    'scheme = "int4"\n[[set]]\nmatch = "layers.0"\namount = 0.5': "an amount is for prune",
    'sparsity = 0.5\nscheme = "ecq"\nmin_sqnr = 20': "--min-sqnr counts what is pruned as error",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_with_a_mistake_is_refused(text, modelzip, source, tmp_path):
    (tmp_path / "r.toml").write_text(text + "\n")
    run = modelzip("prune", source, "--recipe", "r.toml")
    assert run.exit_code == 2
    assert RECIPES[text] in run.stderr
    assert len([*tmp_path.iterdir()]) == 2


def test_an_amount_is_no_scheme_of_quantize(modelzip, source):
    run = modelzip("quantize", source, "--set", "layers.0=0.5")
    assert run.exit_code == 2
    assert "an amount is for prune" in run.stderr


def test_an_output_that_exists_and_a_failed_gate_leave_things_as_they_were(modelzip, source, tmp_path):
    out = tmp_path / "model.p50.safetensors"
    out.write_text("old")
    for options, code in ([], 2), (["-f", "--fail-under", "sqnr=90"], 4), (["-f", "--max-size", "1kB"], 4):
        assert modelzip("prune", source, *S50, *options).exit_code == code
    assert out.read_text() == "old"
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_is_no_checkpoint_is_refused(suffix, modelzip, tmp_path):
    (tmp_path / f"model{suffix}").write_bytes(b"no checkpoint")
    assert modelzip("prune", f"model{suffix}", *S50).exit_code == 1
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    "tensors", [{}, {"bias": torch.ones(9)}, {"count": torch.tensor(7)}, {"none": torch.empty(0, 9)}]
)
def test_a_file_with_nothing_to_prune_is_written_with_a_warning(tensors, modelzip, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    for amount in (S50, ("--pattern", "2:4"), ("--threshold", "0.1")):
        run = modelzip("prune", "model.safetensors", *amount, "-o", "out.safetensors", "-f")
        assert (run.exit_code, run.stderr) == (0, "")
        assert "nothing to treat" in run.stdout
