"""Every JSON object that the program prints is one of docs/report.schema.json, and nothing in it is NaN or infinite."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import save_file

from modelzip_cli.amounts import PRUNING_KEYS
from modelzip_cli.tensors import DTYPES
from tests.checkpoints import every_dtype_pth, tied_pth, trainer_pth, weights

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "report.schema.json").read_text(encoding="utf-8"))


def edge_cases(path: Path) -> Path:
    """Tensors whose figures have no value: nothing lost, nothing there, nothing but zeros, ends of the range."""
    tensors = {
        "constant": torch.full((64, 64), 0.5),
        "zeros": torch.zeros(64, 64),
        "negative_zeros": torch.full((64, 64), -0.0),
        "whole": torch.arange(-2048.0, 2048.0).reshape(64, 64) % 15,
        "tiny": weights(64, 64) * 1e-37,
        "subnormal": torch.full((64, 64), 1e-45),
        "huge": torch.full((64, 64), 3.3e38),
        "one_spike": torch.nn.functional.one_hot(torch.arange(64), 64).float() * 1e30,
        "half": weights(64, 64).half(),
        "empty": torch.empty(0, 8),
        "one": torch.tensor([[3.0]]),
        "scalar": torch.tensor(2.5),
        "count": torch.tensor(7),
    }
    save_file(tensors, path)
    return path


def nothing_to_treat(path: Path) -> Path:
    """A file in which every tensor is kept."""
    save_file({"bias": weights(16), "count": torch.tensor(7)}, path)
    return path


def no_tensors(path: Path) -> Path:
    """A file without tensors."""
    save_file({}, path)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "edges.safetensors": edge_cases,
    "nothing.safetensors": nothing_to_treat,
    "none.safetensors": no_tensors,
    "trainer.pth": trainer_pth,
    "tied.pth": tied_pth,
    "dtypes.pth": every_dtype_pth,
}
each_source = pytest.mark.parametrize("source", SOURCES)


def assert_is(kind: str, values: Any) -> None:
    """Hold printed values against one definition of the schema, and against the schema as a whole."""
    found = list(Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}).iter_errors(values))
    assert not found, "\n".join(f"{error.json_path}: {error.message[:300]}" for error in found)
    Draft202012Validator(SCHEMA).validate(values)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["dtype"]["enum"] == [*DTYPES]


@each_source
def test_a_file_goes_through_every_command(modelzip: Any, tmp_path: Path, source: str) -> None:
    path, small, back = SOURCES[source](tmp_path / source), tmp_path / "small.safetensors", tmp_path / "back.pth"
    run = modelzip("quantize", path, "--scheme", "int4-g64", "-o", small, "--json")
    assert_is("report", run.json)
    assert (run.json["command"], run.json["output"]["bytes"]) == ("quantize", small.stat().st_size)
    assert_is("report", modelzip("restore", small, "-o", back, "--json").json)
    assert_is("difference", modelzip("diff", path, small, "--json").json)
    assert_is("verification", modelzip("verify", small, "--against", path, "--json").json)
    inspections = modelzip("inspect", path, small, "--json").json
    assert_is("inspections", inspections)
    assert inspections["runs"][0]["manifest"] is None
    assert inspections["runs"][1]["manifest"]["format_version"] == 1


@pytest.mark.parametrize("scheme", ["int8-tensor", "fixed4", "fixed12-mse", "binary", "fp16", "keep"])
def test_figures_that_do_not_exist_are_null(modelzip: Any, tmp_path: Path, scheme: str) -> None:
    path = edge_cases(tmp_path / "edges.safetensors")
    rows = ("huge",) if scheme in ("fp16", "fixed4") else ()  # such a weight and one more bit would be infinite
    run = modelzip("quantize", path, "--scheme", scheme, *[f"--skip={name}" for name in rows], "--json")
    assert_is("report", run.json)


def test_an_error_is_never_so_small_that_the_report_says_0(modelzip: Any, tmp_path: Path) -> None:
    report = modelzip("quantize", edge_cases(tmp_path / "edges.safetensors"), "--json").json
    lossy = [row for row in report["tensors"] if row["status"] == "compressed" and not row["exact"]]
    assert "tiny" in [row["name"] for row in lossy]
    assert all(row["max_abs_error"] > 0 for row in lossy)


@pytest.mark.parametrize("command", ["quantize", "restore"])
def test_a_dry_run_is_a_report_without_an_output(modelzip: Any, tmp_path: Path, command: str) -> None:
    path = edge_cases(tmp_path / "edges.safetensors")
    report = modelzip(command, path, "--dry-run", "--json").json
    assert_is("report", report)
    assert report["output"] is None


def test_gates_rules_and_patterns_are_in_the_report(modelzip: Any, tmp_path: Path) -> None:
    path = trainer_pth(tmp_path / "trainer.pth")
    options = ["--set", "layers.0.*=fp16", "--only", "*proj*", "--skip", "*bias", "--key", "model_state_dict"]
    options += ["--coder", "rans"]
    gates = ["--fail-under", "sqnr=5", "--fail-under", "cosine=0.5", "--fail-under", "sqnr-min=1", "--max-size", "1MB"]
    report = modelzip("quantize", path, *options, *gates, "--keep-extras", "--allow-nonfinite", "--json").json
    assert_is("report", report)
    assert [gate["metric"] for gate in report["gates"]] == ["sqnr", "cosine", "sqnr-min", "size"]
    goals = {"bpw", "min_sqnr", "ratio", "target_size"}
    assert set(report["recipe"]) == set(SCHEMA["$defs"]["recipe"]["properties"]) - goals - {*PRUNING_KEYS}


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["quantize", "--scheme", "int8"], ["dense", "as is"]),
        (["prune", "--sparsity", "0.8", "--criterion", "auto"], ["dense", "as is", "repaired"]),
        (["prune", "--sparsity", "0.8", "--recover", "1"], ["dense", "as is", "repaired", "recovered"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_run_with_data_says_what_the_model_did_at_each_stage(
    modelzip: Any, classifier: Any, tmp_path: Path, options: list[str], stages: list[str]
) -> None:
    command, *more = options
    path, data = classifier.path("net.pt2"), classifier.path("data.npz")
    gates = ["--fail-under", "agreement=0.1", "--fail-under", "accuracy=0.1"]
    run = modelzip(command, path, *more, "--data", data, *gates, "--output-dir", tmp_path, "--json", "--no-progress")
    report = run.json
    assert_is("report", report)
    found = report["evaluation"]
    assert {each["stage"] for each in found["stages"]} <= {*stages}  # a repair that does not help is undone
    assert (found["before"], found["after"]) == (found["stages"][0], found["stages"][-1])
    assert found["after"]["stage"] == ("recovered" if "--recover" in more else found["stages"][-1]["stage"])
    assert found["after"]["bytes"] == report["output"]["bytes"]
    assert [gate["metric"] for gate in report["gates"]] == ["agreement", "accuracy"]
    assert report["data"].endswith("held-out examples of " + str(data))
    assert [*map(bool, report["notes"])] == [True] * ("auto" in more)
    for key in "evaluation", "data", "network", "notes":
        assert not Draft202012Validator(SCHEMA).is_valid({name: report[name] for name in report if name != key})


def test_what_cannot_go_with_data_is_refused(modelzip: Any, classifier: Any, tmp_path: Path) -> None:
    path, data, kept = classifier.path("net.pt2"), classifier.path("data.npz"), tmp_path / "kept"
    for options, message in (
        (["-o", "-", "--data", data], "name a file with -o"),
        ([path, "--output-dir", tmp_path, "--data", data, "--save-statistics", kept], "one file, of one checkpoint"),
        (["--output-dir", tmp_path, "--fail-under", "accuracy=0.5"], "--data says on what"),
    ):
        run = modelzip("quantize", path, *options)
        assert (run.exit_code, run.stdout) == (2, "")
        assert message in run.stderr
    assert not any(tmp_path.iterdir())


def test_statistics_of_another_model_are_refused(modelzip: Any, classifier: Any, tmp_path: Path) -> None:
    data, written = classifier.path("data.npz"), tmp_path / "net.statistics"
    options = ["--sparsity", "0.5", "--criterion", "fisher", "--data", data, "--save-statistics", written]
    assert modelzip("prune", classifier.path("net.pt2"), *options, "--output-dir", tmp_path / "out").exit_code == 0
    other = tied_pth(tmp_path / "other.pth")
    for path in other, classifier.path("net.safetensors"):
        run = modelzip("quantize", path, "--statistics", written, "--output-dir", tmp_path / "out", "--json")
        assert run.exit_code == 2
        assert_is("error", run.json)
        assert "no hessian of these weights" in run.stderr


@pytest.mark.parametrize("limit", ["inf", "-inf", "nan"])
def test_a_limit_that_is_no_number_is_a_mistake_of_the_user(modelzip: Any, tmp_path: Path, limit: str) -> None:
    path = nothing_to_treat(tmp_path / "nothing.safetensors")
    run = modelzip("quantize", path, "--fail-under", f"sqnr={limit}", "--json")
    assert run.exit_code == 2
    assert_is("error", run.json)


def test_a_batch_holds_reports_failures_and_skipped_files(modelzip: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    edge_cases(folder / "a.safetensors")
    tied_pth(folder / "b.pth")
    assert_is("batch", modelzip("quantize", "-r", folder, "--json").json)
    (folder / "c.safetensors").write_bytes(b"no checkpoint")
    run = modelzip("quantize", "-r", folder, "--skip-existing", "--format", "jsonl")
    assert run.exit_code == 6
    lines = [json.loads(line, parse_constant=pytest.fail) for line in run.stdout.splitlines()]
    for line in lines:
        Draft202012Validator(SCHEMA).validate(line)
    summary = lines[-1]["summary"]
    assert (summary["failed"], summary["skipped"]) == (1, 4)  # two sources, two outputs of the first run


def test_a_batch_with_a_failure_prints_one_object(modelzip: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    tied_pth(folder / "b.pth")
    (folder / "c.safetensors").write_bytes(b"no checkpoint")
    run = modelzip("quantize", "-r", folder, "--json")
    assert run.exit_code == 6
    assert_is("batch", run.json)
    assert run.json["summary"]["failed"] == 1


def test_a_damaged_file_is_one_verification(modelzip: Any, tmp_path: Path) -> None:
    path, small = tied_pth(tmp_path / "tied.pth"), tmp_path / "small.safetensors"
    assert modelzip("quantize", path, "-o", small).exit_code == 0
    changed = bytearray(small.read_bytes())
    changed[-1] ^= 1
    small.write_bytes(changed)
    run = modelzip("verify", small, "--json")
    assert run.exit_code == 1
    assert_is("verification", run.json)
    assert len(run.json["bad"]) == 1


def test_a_difference_that_is_too_large_is_one_object(modelzip: Any, tmp_path: Path) -> None:
    path, small = tied_pth(tmp_path / "tied.pth"), tmp_path / "small.safetensors"
    assert modelzip("quantize", path, "--scheme", "int2", "-o", small).exit_code == 0
    run = modelzip("diff", path, small, "--fail-under", "sqnr=100", "--json")
    assert run.exit_code == 4
    assert_is("difference", run.json)


def test_checkpoints_with_little_in_common_are_compared(modelzip: Any, tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file({"a": weights(4, 4), "b": weights(4), "c": torch.arange(4), "d": weights(3), "nan": weights(2)}, one)
    changed = {"a": weights(4, 5), "b": torch.arange(4), "c": torch.arange(4) + 1, "e": weights(3)}
    save_file(changed | {"nan": torch.tensor([float("nan"), float("inf")])}, other)
    difference = modelzip("diff", one, other, "--json").json
    assert_is("difference", difference)
    statuses = {row["name"]: row["status"] for row in difference["tensors"]}
    assert statuses == {
        "a": "shape differs: [4, 5]",
        "b": "not comparable",
        "c": "differs",
        "nan": "differs",
    }


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ([], "scheme_list"),
        (["int"], "scheme_manual"),
        (["fixed8-mse"], "scheme_manual"),
        (["keep"], "scheme_manual"),
        (["--defaults"], "keep_rules"),
    ],
    ids=" ".join,
)
def test_schemes_are_listed(modelzip: Any, arguments: list[str], kind: str) -> None:
    assert_is(kind, modelzip("schemes", *arguments, "--json").json)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["inspect", "missing.pth"], 2),
        (["quantize", "model.safetensors", "--scheme", "int9"], 2),
        (["quantize", "model.safetensors", "--only", "nothing*"], 2),
        (["quantize", "model.safetensors", "--fail-under", "sqnr=99"], 4),
        (["verify", "broken.safetensors"], 1),
        (["quantize", "--no-such-option"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_object(modelzip: Any, tmp_path: Path, arguments: list[str], exit_code: int) -> None:
    save_file({"w": weights(64, 64)}, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    run = modelzip(*arguments, "--json")
    assert run.exit_code == exit_code
    assert_is("error", run.json)
    assert run.json["error"]["exit_code"] == exit_code
    assert run.stderr == f"modelzip: error: {run.json['error']['message']}\n"


def test_an_error_names_the_file_wherever_it_stands_on_the_command_line(modelzip: Any, tmp_path: Path) -> None:
    run = modelzip("quantize", "--scheme", "int8", "missing.pth", "--json")
    assert run.json["error"]["path"] == "missing.pth"


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all objects inside `value`."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a place inside `value`."""
    for key in path:
        value = value[key]
    return value


def test_the_schema_is_strict_inside_and_open_at_the_top(modelzip: Any, tmp_path: Path) -> None:
    path = edge_cases(tmp_path / "edges.safetensors")
    validator = Draft202012Validator(SCHEMA)
    report = modelzip("quantize", path, "-o", tmp_path / "small.safetensors", "--json").json
    report["tensors"] = report["tensors"][:2]
    for place in objects(report):
        more = copy.deepcopy(report)
        at(more, place)["new_key"] = 1
        assert validator.is_valid(more) == (place == ())
        for key in at(report, place):
            less, wrong = copy.deepcopy(report), copy.deepcopy(report)
            del at(less, place)[key]
            at(wrong, place)[key] = {"$": "no such value"}
            assert not validator.is_valid(less)
            assert not validator.is_valid(wrong)
