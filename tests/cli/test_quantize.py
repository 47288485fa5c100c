import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from modelzip_cli.schemes import SCHEMES, scheme_class
from tests import checkpoints


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def sqnr(source: dict[str, torch.Tensor], restored: dict[str, torch.Tensor], names: list[str]) -> float:
    signal = sum((source[name].double() ** 2).sum().item() for name in names)
    noise = sum(((source[name].double() - restored[name].double()) ** 2).sum().item() for name in names)
    return float(10 * np.log10(signal / noise))


def test_the_output_is_smaller_opens_elsewhere_and_the_source_is_untouched(modelzip, sample, tmp_path):
    source, out = sample("docs_lm.safetensors"), tmp_path / "small.safetensors"
    before = source.read_bytes()

    run = modelzip("quantize", source, "--scheme", "int4", "-o", out, "--json")

    assert (run.exit_code, run.stderr) == (0, "")
    assert run.json["output"]["bytes"] == out.stat().st_size < len(before) / 3
    assert load_safetensors(out)  # safetensors', not ours
    assert source.read_bytes() == before


def test_without_options_it_is_int8_beside_the_source(modelzip, sample, tmp_path):
    run = modelzip("quantize", sample("digits_cnn.pth"))
    assert run.exit_code == 0
    assert listing(tmp_path) == ["digits_cnn.int8.safetensors", "digits_cnn.pth"]


def test_the_error_that_is_reported_is_the_error_of_what_restore_writes(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    report = modelzip("quantize", source, "--scheme", "int3-g64", "-o", "small.safetensors", "--json").json
    modelzip("restore", "small.safetensors", "-o", "back.pth")
    before, after = torch.load(source, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)

    treated = [row["name"] for row in report["tensors"] if row["status"] == "compressed"]
    assert sqnr(before, after, treated) == pytest.approx(report["totals"]["sqnr_db"], abs=1e-3)
    for row in report["tensors"]:
        if row["status"] == "compressed":
            error = (before[row["name"]].double() - after[row["name"]].double()).abs().max().item()
            assert error == pytest.approx(row["max_abs_error"], rel=1e-5)
            assert sqnr(before, after, [row["name"]]) == pytest.approx(row["sqnr_db"], abs=1e-3)
        else:
            assert checkpoints.same(before[row["name"]], after[row["name"]])


def test_ratio_and_bits_are_those_of_the_file_on_disk(modelzip, sample, tmp_path):
    source = sample("docs_lm.safetensors")
    report = modelzip("quantize", source, "-o", "small.safetensors", "--json").json
    totals, rows = report["totals"], report["tensors"]
    assert totals["ratio"] == pytest.approx(
        source.stat().st_size / (tmp_path / "small.safetensors").stat().st_size, rel=1e-3
    )
    treated = [row for row in rows if row["status"] == "compressed"]
    weights = sum(int(np.prod(row["shape"])) for row in treated)
    assert totals["bits_per_weight"] == pytest.approx(
        8 * sum(row["bytes_after"] for row in treated) / weights, rel=1e-3
    )
    assert totals["treated_parameters"] == weights


@pytest.mark.parametrize("scheme", ["int4-g32-asym-mse", "fixed6-mse", "binary-tensor"])
def test_the_bytes_do_not_depend_on_threads_or_on_numba(modelzip, sample, tmp_path, scheme):
    source, outputs = sample("docs_lm.safetensors"), set()
    for kernels, jobs in (("numpy", "1"), ("numpy", "7"), ("numba", "1"), ("numba", "2"), ("numba", "7")):
        out = tmp_path / f"{kernels}.{jobs}.safetensors"
        run = modelzip("quantize", source, "-s", scheme, "-j", jobs, "-o", out, env={"MODELZIP_KERNELS": kernels})
        assert run.exit_code == 0, run.stderr
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


@pytest.mark.parametrize("scheme", ["ecq-s0.3", "ecq-s0.02-t1", "lossless", "int4"])
def test_entropy_coded_bytes_do_not_depend_on_threads_or_on_numba(modelzip, sample, tmp_path, scheme):
    source = sample("digits_mlp.pth")
    coder = ["--coder", "rans"] if scheme == "int4" else []
    outputs = set()
    for kernels, jobs in (("numpy", "1"), ("numba", "3")):
        out = tmp_path / f"{kernels}.safetensors"
        options = ["-s", scheme, "-j", jobs, "-o", out, *coder]
        run = modelzip("quantize", source, *options, env={"MODELZIP_KERNELS": kernels})
        assert run.exit_code == 0, run.stderr
        outputs.add(out.read_bytes())
    assert len(outputs) == 1


def test_a_dry_run_tells_the_exact_size_and_writes_nothing(modelzip, sample, tmp_path):
    source = sample("docs_lm_trainer.pth")
    planned = modelzip("quantize", source, "--scheme", "int4", "--coder", "bitpack", "-n", "--json").json
    assert listing(tmp_path) == ["docs_lm_trainer.pth"]
    assert planned["output"] is None
    done = modelzip("quantize", source, "--scheme", "int4", "--coder", "bitpack", "--json").json
    assert planned["planned"]["bytes"] == done["output"]["bytes"]


@pytest.mark.parametrize("scheme", ["int8", "ecq-s0.2"])
def test_a_dry_run_tells_what_entropy_coding_will_take_to_a_hundredth(scheme, modelzip, sample, tmp_path):
    source = sample("digits_mlp.pth")
    options = ["--scheme", scheme, "--coder", "rans", "-o", "small.safetensors", "--json"]
    planned = modelzip("quantize", source, "-n", *options).json["planned"]["bytes"]
    assert listing(tmp_path) == ["digits_mlp.pth"]
    size = modelzip("quantize", source, *options).json["output"]["bytes"]
    assert abs(planned - size) < 0.01 * size


def test_a_pattern_that_matches_nothing_names_the_closest_tensor(modelzip, sample, tmp_path):
    run = modelzip("quantize", sample("digits_mlp.pth"), "--only", "layer.0.*", "-o", "small.safetensors")
    assert run.exit_code == 2
    assert "digits_mlp.pth: --only 'layer.0.*' matches no tensor; the closest name is 'layers." in run.stderr
    assert listing(tmp_path) == ["digits_mlp.pth"]


def test_set_overrides_the_defaults_and_the_last_match_wins(modelzip, sample):
    report = modelzip(
        "quantize", sample("docs_lm.safetensors"), "-s", "int4", "--set", "blocks.0.*=int2", "--set", "*.0.qkv*=keep",
        "--set", "tok=int4-g32", "-n", "--json",
    ).json  # fmt: skip
    scheme = {row["name"]: row["scheme"] for row in report["tensors"]}
    assert scheme["tok.weight"] == "int4-g32"
    assert {scheme[name] for name in scheme if name.startswith("blocks.0.qkv")} == {None}
    assert "int2-g128" in {scheme[name] for name in scheme if name.startswith("blocks.0.")}
    assert "int4-g128" in {scheme[name] for name in scheme if name.startswith("blocks.1.")}


def test_dense_fp16_is_a_drop_in_for_the_script_that_loaded_the_source(modelzip, sample, tmp_path):
    source = sample("digits_mlp.pth")
    run = modelzip("quantize", source, "--scheme", "fp16", "--layout", "dense")
    assert run.exit_code == 0, run.stderr
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "digits_mlp.fp16.pth", weights_only=True)
    assert list(after) == [key for key in before if key in after]
    assert after["config"] == before["config"]
    weight = before["model_state_dict"]["layers.0.weight"]
    assert torch.equal(after["model_state_dict"]["layers.0.weight"], weight.half())


def test_dense_int_shows_the_values_that_native_restores(modelzip, sample, tmp_path):
    source = sample("docs_lm.safetensors")
    modelzip("quantize", source, "-s", "int4", "-o", "native.safetensors")
    modelzip("quantize", source, "-s", "int4", "--layout", "dense", "-o", "dense.safetensors")
    modelzip("restore", "native.safetensors", "-o", "restored.safetensors")
    dense, restored = (
        load_safetensors(tmp_path / "dense.safetensors"),
        load_safetensors(tmp_path / "restored.safetensors"),
    )
    assert dense.keys() == restored.keys()
    assert all(checkpoints.same(dense[name], restored[name]) for name in dense)


def test_ties_are_stored_once_and_tied_again(modelzip, tmp_path):
    source = checkpoints.tied_pth(tmp_path / "tied.pth")
    modelzip("quantize", source, "-o", "small.safetensors")
    modelzip("restore", "small.safetensors", "-o", "back.pth")
    before, after = torch.load(source, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)
    shared = {name: tensor.untyped_storage().data_ptr() for name, tensor in before.items()}
    again = {name: tensor.untyped_storage().data_ptr() for name, tensor in after.items()}
    ties = [(a, b) for a in shared for b in shared if a < b and shared[a] == shared[b]]
    assert ties
    assert all(again[a] == again[b] for a, b in ties)


def test_tensors_beside_the_weights_are_dropped_and_named_or_kept(modelzip, sample, tmp_path):
    source = sample("digits_mlp.pth")
    dropped = modelzip("quantize", source, "-o", "small.safetensors", "--json").json
    names = [row["name"] for row in dropped["tensors"] if row["status"] == "dropped"]
    assert names
    assert all(name.startswith("optimizer_state_dict.") for name in names)

    kept = modelzip("quantize", source, "-o", "large.safetensors", "--keep-extras", "--json").json
    assert not [row for row in kept["tensors"] if row["status"] == "dropped"]
    modelzip("restore", "large.safetensors", "-o", "back.pth")
    before, after = torch.load(source, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)
    state_before, state_after = before["optimizer_state_dict"]["state"], after["optimizer_state_dict"]["state"]
    assert list(state_before) == list(state_after)
    assert all(torch.equal(state_before[k]["exp_avg"], state_after[k]["exp_avg"]) for k in state_before)


@pytest.mark.parametrize(
    ("limit", "passes"), [("sqnr=30", True), ("sqnr=60", False), ("sqnr-min=60", False), ("cosine=0.9", True)]
)
def test_gates_pass_or_leave_nothing_behind(modelzip, sample, tmp_path, limit, passes):
    run = modelzip("quantize", sample("digits_cnn.pth"), "--fail-under", limit, "-o", "small.safetensors", "--json")
    assert run.exit_code == (0 if passes else 4)
    assert (tmp_path / "small.safetensors").exists() == passes
    if passes:
        assert run.json["gates"][0]["passed"] is True
    else:
        assert run.json["error"]["exit_code"] == 4


def test_a_failed_gate_leaves_the_output_of_an_earlier_run(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    modelzip("quantize", source)
    before = (tmp_path / "digits_cnn.int8.safetensors").read_bytes()
    assert modelzip("quantize", source, "--max-size", "10kB", "-f").exit_code == 4
    assert (tmp_path / "digits_cnn.int8.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "scheme",
    [
        *(scheme_class(scheme_id).example for scheme_id in SCHEMES if scheme_id != "lossless"),
        *("int4", "int4-asym", "int4-tensor", "int4-tensor-asym", "int4-tensor-asym-mse", "fixed8", "fixed8-mse"),
        *("ternary", "ternary-tensor", "binary", "binary-tensor", "binary-m2-tensor", "fp8", "codebook1", "codebook8"),
    ],
)
def test_every_scheme_leaves_the_refusal_of_nan_to_one_clear_line(scheme, modelzip, tmp_path, recwarn):
    weights = torch.full((64, 128), 0.5, dtype=torch.float64)
    weights[3, 5], weights[9, 9] = float("nan"), float("inf")
    save_file({"bad": weights}, tmp_path / "nan.safetensors")
    run = modelzip("quantize", "nan.safetensors", "--scheme", scheme)
    assert run.exit_code == 1
    assert "tensor bad holds NaN (first at row 3, column 5)" in run.stderr
    assert not recwarn.list
    assert listing(tmp_path) == ["nan.safetensors"]


def test_a_tensor_with_nan_is_refused_by_name_or_kept(modelzip, tmp_path):
    weights = {"good": checkpoints.weights(64, 64), "bad": checkpoints.weights(64, 64)}
    weights["bad"][3, 5] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    run = modelzip("quantize", "nan.safetensors")
    assert run.exit_code == 1
    assert "nan.safetensors: tensor bad holds NaN (first at row 3, column 5)" in run.stderr
    assert listing(tmp_path) == ["nan.safetensors"]
    report = modelzip("quantize", "nan.safetensors", "--allow-nonfinite", "--json").json
    assert {row["name"]: row["status"] for row in report["tensors"]} == {"bad": "kept", "good": "compressed"}


def test_fp16_keeps_a_tensor_that_would_overflow(modelzip, tmp_path):
    save_file({"w": checkpoints.weights(64, 64), "big": torch.full((64, 64), 497_160.0)}, tmp_path / "m.safetensors")
    rows = modelzip("quantize", "m.safetensors", "-s", "fp16", "--json").json["tensors"]
    reasons = {row["name"]: row["reason"] for row in rows}
    assert reasons["w"] is None
    assert "does not fit fp16" in reasons["big"]


def test_a_file_with_nothing_to_treat_is_written_with_a_warning(modelzip, tmp_path):
    save_file({"bias": torch.ones(8), "step": torch.tensor(3)}, tmp_path / "tiny.safetensors")
    run = modelzip("quantize", "tiny.safetensors", "--json")
    assert run.exit_code == 0
    assert any("nothing to treat" in warning for warning in run.json["warnings"])
    assert any("larger than the source" in warning for warning in run.json["warnings"])
    assert (tmp_path / "tiny.int8.safetensors").exists()


def test_a_recipe_is_saved_read_and_overridden(modelzip, sample, tmp_path):
    source = sample("docs_lm.safetensors")
    first = modelzip(
        "quantize", source, "-s", "int4-mse", "--skip", "*.qkv*", "--set", "tok=int8-g64", "--save-recipe", "r.toml",
        "-o", "a.safetensors", "--json",
    )  # fmt: skip
    second = modelzip("quantize", source, "--recipe", "r.toml", "-o", "b.safetensors", "--json")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert first.json["recipe"] == second.json["recipe"]
    third = modelzip("quantize", source, "--recipe", "r.toml", "-s", "int2-g32", "-n", "--json")
    assert third.json["recipe"]["scheme"] == "int2-g32"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scheme", "nope"], "no scheme 'nope'"),
        (["--scheme", "in8"], "did you mean 'int8'?"),
        (["--scheme", "int9"], "int has no width 9; it has 2 to 8"),
        (["--scheme", "int4-g64-g32"], "an option is given twice"),
        (["--scheme", "int4-g64-tensor"], "exclude each other"),
        (["--group-size", "64"], "--group-size needs --bits"),
        (["--bits", "4", "--scheme", "int8"], "give one of the two"),
        (["--set", "tok"], "write GLOB=SCHEME"),
        (["--only", "re:("], "is not a regular expression"),
        (["--layout", "sparse"], "no layout 'sparse'"),
        (["--fail-under", "sqrn=3"], "did you mean 'sqnr'?"),
        (["--fail-under", "sqnr=x"], "write METRIC=VALUE"),
        (["--max-size", "big"], "write a size such as 25MB"),
        (["--jobs", "0"], "write a number from 1 to 1024"),
        (["--format", "yaml"], "there are auto, rich, plain"),
        (["-o", "out"], "the suffix of an output says its container"),
        (["-o", "missing/out.safetensors"], "the folder missing does not exist"),
        (["-o", "a.safetensors", "--output-dir", "d"], "choose one"),
        (["-f", "--skip-existing"], "choose one"),
        (["--include", "*.pth"], "they need -r"),
        (["--recipe", "absent.toml"], "cannot read the recipe"),
        (["--key", "model"], "a safetensors file has no nesting"),
        (["--shceme", "int8"], "No such option"),
    ],
)
def test_a_wrong_argument_is_one_clear_line_and_nothing_is_written(modelzip, sample, tmp_path, arguments, said):
    run = modelzip("quantize", sample("docs_lm.safetensors"), *arguments)
    assert run.exit_code == (1 if "missing/" in arguments[-1] else 2)
    assert said in run.stderr
    assert run.stderr.startswith("modelzip: error: ")
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""
    assert listing(tmp_path) == ["docs_lm.safetensors"]


def test_an_error_is_json_too_when_json_was_asked_for(modelzip):
    run = modelzip("quantize", "absent.pth", "--json")
    assert run.exit_code == 2
    assert run.json == {
        "schema_version": 1,
        "error": {
            "kind": "file-not-there",
            "message": "absent.pth: no such file",
            "path": "absent.pth",
            "exit_code": 2,
        },
    }


def test_a_misspelt_path_names_its_neighbour(modelzip, sample):
    sample("digits_cnn.pth")
    assert "did you mean 'digits_cnn.pth'?" in modelzip("quantize", "digit_cnn.pth").stderr


def test_an_existing_output_is_an_error_kept_or_replaced(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    out = tmp_path / "digits_cnn.int8.safetensors"
    out.write_text("precious")
    refused = modelzip("quantize", source)
    assert refused.exit_code == 2
    assert "exists; -f replaces" in refused.stderr
    assert modelzip("quantize", source, "--skip-existing").exit_code == 0
    assert out.read_text() == "precious"
    assert modelzip("quantize", source, "-f").exit_code == 0
    assert load_safetensors(out)


def test_quiet_prints_only_the_path(modelzip, sample):
    run = modelzip("quantize", sample("digits_cnn.pth"), "-q")
    assert (run.stdout, run.stderr) == (f"{Path(run.stdout.strip())}\n", "")
    assert run.stdout.strip().endswith("digits_cnn.int8.safetensors")


def test_the_next_lines_of_the_report_work_when_pasted(modelzip, sample, tmp_path, environment):
    import shlex

    source = sample("digits_cnn.pth").rename(tmp_path / "my model; v2.pth")
    run = modelzip("quantize", source)
    line = next(line for line in run.stdout.splitlines() if line.startswith("restore"))
    words = shlex.split(line)
    assert words[:3] == ["restore", "modelzip", "restore"]
    assert modelzip(*words[2:]).exit_code == 0


def test_a_source_that_was_compressed_before_is_taken_with_a_warning(modelzip, sample):
    modelzip("quantize", sample("digits_cnn.pth"), "-o", "once.safetensors")
    run = modelzip("quantize", "once.safetensors", "-s", "int4", "-o", "twice.safetensors", "--json")
    assert run.exit_code == 0
    assert run.json["source"]["compressed"] is True
    assert any("errors and the new ones add up" in warning for warning in run.json["warnings"])
    assert modelzip("verify", "twice.safetensors", "--against", "once.safetensors").exit_code == 0


def test_the_torch_output_loads_with_weights_only_and_holds_the_same_bytes(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    modelzip("quantize", source, "-o", "a.safetensors")
    modelzip("quantize", source, "-o", "b.pth")
    parts = torch.load(tmp_path / "b.pth", weights_only=True)
    same = load_safetensors(tmp_path / "a.safetensors")
    assert parts.keys() - {"__metadata__"} == same.keys()
    assert all(torch.equal(parts[name], same[name]) for name in same)
    modelzip("restore", "a.safetensors", "-o", "a.back.pth")
    modelzip("restore", "b.pth", "-o", "b.back.pth")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("a.back.pth", "b.back.pth"))
    assert all(checkpoints.same(one[name], two[name]) for name in one)


def test_the_report_says_what_ecq_would_take_for_the_same_decibels(modelzip, sample):
    run = modelzip("quantize", sample("digits_cnn.pth"), "--scheme", "int4", "--format", "plain")
    bits, command = re.search(
        r"^ecq +.* in about ([\d.]+) bits a weight or less: modelzip (.*)$", run.stdout, re.M
    ).groups()
    taken = modelzip(*command.split(), "--json").json["totals"]["bits_per_weight"]
    assert float(bits) - 0.15 < taken < float(bits) + 0.05
    run = modelzip("quantize", sample("digits_mlp.pth"), "--scheme", "int4", "--format", "plain")
    assert "\necq" not in run.stdout  # of so few weights its tables would take what it saves
