"""`--report`: the report as a file, in each form, beside what a command prints; and what a report may never replace."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import pytest

from tests import checkpoints
from tests.conftest import SAMPLES


def without_timing(value):
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_timing(item) for key, item in value.items() if key != "timing"}
    return [without_timing(item) for item in value] if isinstance(value, list) else value


def written(path: Path):
    return without_timing(json.loads(path.read_text()))


def text_of(page: Path) -> str:
    """What a reader of an HTML page sees of its body, without markup."""
    body = page.read_text().partition("<body>")[2].partition("<script>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body.replace("<wbr>", ""))).split())


@pytest.fixture
def source(tmp_path):
    return checkpoints.plain_safetensors(tmp_path / "model.safetensors")


RUNS = {
    "quantize": ("quantize", "model.safetensors", "-s", "int4"),
    "dry run": ("quantize", "model.safetensors", "-s", "int4", "-n"),
    "to standard output": ("quantize", "model.safetensors", "-o", "-", "-n"),
    "restore": ("restore", "small.safetensors"),
    "batch": ("quantize", "model.safetensors", "empty.pth", "--output-dir", "out"),
    "batch of a folder": ("quantize", "-r", ".", "--output-dir", "out"),
    "dry batch": ("quantize", "model.safetensors", "empty.pth", "-n"),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_report_file_says_what_the_program_prints_in_that_form(what, source, modelzip, tmp_path):
    modelzip("quantize", source, "-o", "small.safetensors")
    (tmp_path / "empty.pth").write_bytes(b"")
    files = [part for suffix in ("json", "md", "html") for part in ("--report", f"r.{suffix}")]

    run = modelzip(*RUNS[what], "--json", "-f", *files)

    assert run.exit_code == (6 if "batch" in what else 0)
    assert written(tmp_path / "r.json") == without_timing(run.json)
    markdown, page = (tmp_path / "r.md").read_text(), text_of(tmp_path / "r.html")
    name = "small.safetensors" if what == "restore" else "model.safetensors"
    assert name in markdown
    assert name in page
    if "batch" in what:
        assert "| failed |" in markdown
        assert "empty" in page
    else:
        assert f"modelzip {RUNS[what][0]} {name}" in page
        assert f"{run.json['totals']['ratio']:.2f}x" in page
        assert ("Dry run: nothing was written" in page) == ("-n" in RUNS[what])
    assert "modelzip " + " ".join(RUNS[what]) in page  # the command line, to run it again


@pytest.mark.parametrize("more", [(), ("--stats",), ("model.safetensors",)])
def test_inspect_writes_json_and_markdown(more, source, modelzip, tmp_path):
    run = modelzip("inspect", source, *more, "--json", "--report", "r.json", "--report", "r.md")
    assert run.exit_code == 0
    assert written(tmp_path / "r.json") == without_timing(run.json)
    assert (tmp_path / "r.md").read_text() == modelzip("inspect", source, *more, "--format", "md").stdout
    assert "model.safetensors" in (tmp_path / "r.md").read_text().splitlines()[0]


def test_markdown_is_what_format_md_prints(source, modelzip, tmp_path):
    def masked(text: str) -> str:
        return re.sub(r"\d+(\.\d+)? (s|MB)\b", "", text)

    printed = modelzip("quantize", source, "-n", "--format", "md", "--report", "r.md").stdout
    assert masked((tmp_path / "r.md").read_text()) == masked(printed)


def test_quiet_and_jsonl_change_what_is_printed_and_not_the_file(source, modelzip, tmp_path):
    first = modelzip("quantize", source, "--report", "a.json", "-q")
    assert first.stdout == f"{tmp_path / 'model.int8.safetensors'}\n"
    second = modelzip("quantize", source, "-f", "--report", "b.json", "--format", "jsonl")
    assert written(tmp_path / "a.json") == written(tmp_path / "b.json") == without_timing(json.loads(second.stdout))


def test_a_report_that_exists_is_replaced_and_its_folder_holds_nothing_else(source, modelzip, tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "r.json").write_text("x" * 1_000_000)
    assert modelzip("quantize", source, "--report", "reports/r.json").exit_code == 0
    assert written(folder / "r.json")["command"] == "quantize"
    assert [path.name for path in folder.iterdir()] == ["r.json"]


def test_a_file_that_was_left_alone_has_its_report_too(source, modelzip, tmp_path):
    modelzip("quantize", source)
    files = [part for suffix in ("json", "md", "html") for part in ("--report", f"r.{suffix}")]
    run = modelzip("quantize", source, "--skip-existing", "--json", *files)
    assert written(tmp_path / "r.json") == run.json
    assert run.json["skipped"] == "output exists"
    assert "output exists" in (tmp_path / "r.md").read_text()
    assert "output exists" in text_of(tmp_path / "r.html")


def test_a_run_that_fails_leaves_the_report_of_before(source, modelzip, tmp_path):
    (tmp_path / "r.json").write_text("old")
    run = modelzip("quantize", source, "-s", "int2", "--fail-under", "sqnr=60", "--report", "r.json")
    assert run.exit_code == 4
    assert (tmp_path / "r.json").read_text() == "old"


# What is refused before any work


@pytest.mark.parametrize("command", ["quantize", "restore", "inspect"])
@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("r.txt", "name a file that ends in .json, .md"),
        ("r", "name a file that ends in .json, .md"),
        ("json", "name a file that ends in .json, .md"),
        ("r.JSON", "name a file that ends in .json, .md"),
        (".json", "name a file that ends in .json, .md"),
        ("nowhere/r.json", "the folder nowhere does not exist"),
        ("model.safetensors/r.json", "the folder model.safetensors does not exist"),
        ("folder.json", "is not a regular file"),
        ("pipe.md", "is not a regular file"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_any_work(report, message, command, source, modelzip, tmp_path):
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    before = sorted(tmp_path.rglob("*"))
    run = modelzip(command, source, "--report", "good.json", "--report", report)
    assert (run.exit_code, run.stdout) == (2, "")
    assert run.stderr.startswith(f"modelzip: error: --report {report}: {message}")
    assert run.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_inspect_has_no_html(source, modelzip):
    run = modelzip("inspect", source, "--report", "r.html")
    assert run.exit_code == 2
    assert run.stderr == "modelzip: error: --report r.html: name a file that ends in .json, .md\n"


@pytest.mark.parametrize("command", ["quantize", "restore", "inspect"])
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link", "another spelling"])
def test_a_report_never_replaces_a_source(way, command, modelzip, tmp_path):
    source = tmp_path / ("model.json" if way in ("itself", "another spelling") else "model.safetensors")
    source.write_bytes((SAMPLES / "docs_lm.safetensors").read_bytes())
    before = source.read_bytes()
    report = {"itself": "model.json", "another spelling": f"../{tmp_path.name}/model.json"}.get(way, "r.json")
    if way == "symbolic link":
        (tmp_path / report).symlink_to(source)
    elif way == "hard link":
        os.link(source, tmp_path / report)
    more = () if command == "inspect" else ("-o", "out.safetensors", "-f")
    run = modelzip(command, source, *more, "--report", report, "--json")
    assert (run.exit_code, run.json["error"]["kind"]) == (2, "output-is-source")
    assert source.read_bytes() == before
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", ["quantize", "inspect"])
@pytest.mark.parametrize("report", ["bert/config.json", "bert/r.json", "bert/model.safetensors.index.json"])
def test_a_report_never_goes_into_a_model_that_is_a_source(report, command, modelzip, tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    checkpoints.plain_safetensors(folder / "model.safetensors")
    run = modelzip(command, folder, "--report", report)
    assert run.exit_code == 2
    assert "would change the source" in run.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_report_is_never_the_output_nor_in_it(modelzip, tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    checkpoints.plain_safetensors(folder / "model.safetensors")
    run = modelzip("quantize", folder, "-o", "small.json", "--report", "small.json")
    assert run.exit_code == 2
    assert run.stderr == (
        "modelzip: error: --report small.json: would change the output small.json; choose another name\n"
    )
    assert modelzip("quantize", folder, "-o", "small", "-q").exit_code == 0
    run = modelzip("quantize", folder, "-o", "small", "-f", "--report", "small/config.json")
    assert run.exit_code == 2
    assert (tmp_path / "small" / "config.json").read_text() == "{}"


def test_a_report_of_a_batch_never_replaces_any_of_its_sources(modelzip, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "a.safetensors")
    last = checkpoints.plain_safetensors(tmp_path / "z.safetensors")
    (tmp_path / "r.md").symlink_to("z.safetensors")
    before = last.read_bytes()
    run = modelzip("quantize", "-r", ".", "--output-dir", "out", "--report", "r.md")
    assert run.exit_code == 2
    assert last.read_bytes() == before
    assert not (tmp_path / "out").exists()
