import json
import shutil

import pytest

from tests import checkpoints
from tests.conftest import SAMPLES


@pytest.fixture
def folder(tmp_path):
    """A tree with good files, a broken one, a foreign one and a Hugging Face directory."""
    root = tmp_path / "models"
    (root / "deep" / "er").mkdir(parents=True)
    shutil.copy(SAMPLES / "digits_cnn.pth", root / "cnn.pth")
    shutil.copy(SAMPLES / "docs_lm.safetensors", root / "deep" / "lm.safetensors")
    checkpoints.trainer_pth(root / "deep" / "er" / "trainer.ckpt")
    (root / "deep" / "cut.safetensors").write_bytes((SAMPLES / "docs_lm.safetensors").read_bytes()[:50_000])
    (root / "notes.txt").write_text("not a checkpoint")
    (root / "page.bin").write_text("<!DOCTYPE html>")
    hub = root / "bert"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    for part in (1, 2):
        checkpoints.plain_safetensors(hub / f"model-0000{part}-of-00002.safetensors")
    return root


def test_a_folder_of_good_odd_and_broken_files_goes_through_with_a_row_for_each(modelzip, folder, tmp_path):
    run = modelzip("quantize", "-r", folder, "--output-dir", "out", "--json")
    assert run.exit_code == 6
    rows = {one["source"]["path"].split("models/")[1]: one for one in run.json["runs"]}
    assert {name: "error" in one for name, one in rows.items()} == {
        "cnn.pth": False,
        "deep/lm.safetensors": False,
        "deep/er/trainer.ckpt": False,
        "deep/cut.safetensors": True,
        "page.bin": True,
        "bert": True,
    }
    assert run.json["summary"]["failed"] == 3
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        "cnn.int8.safetensors",
        "deep/er/trainer.int8.safetensors",
        "deep/lm.int8.safetensors",
        "modelzip.jsonl",
    ]


def test_shards_are_never_taken_for_models(modelzip, folder):
    run = modelzip("quantize", "-r", folder, "--include", "bert", "-n", "--json")
    assert [one["source"]["path"].rpartition("/")[2] for one in run.json["runs"]] == ["bert"]
    assert "2 .safetensors files and no index" in run.json["runs"][0]["error"]["message"]


def test_a_second_run_takes_no_outputs_for_inputs(modelzip, folder, tmp_path):
    modelzip("quantize", "-r", folder, "--exclude", "cut*", "--exclude", "page*", "--exclude", "bert")
    before = sorted(folder.rglob("*"))
    again = modelzip(
        "quantize", "-r", folder, "--exclude", "cut*", "--exclude", "page*", "--exclude", "bert", "--skip-existing"
    )
    assert again.exit_code == 0, again.stdout
    assert sorted(folder.rglob("*")) == before
    assert "0 done, 6 skipped" in again.stdout


def test_include_and_exclude_choose_files(modelzip, folder, tmp_path):
    run = modelzip(
        "quantize", "-r", folder, "--include", "*.pth", "--include", "deep/*", "--exclude", "*cut*", "-n", "--json"
    )
    assert sorted(one["source"]["path"].rpartition("/")[2] for one in run.json["runs"]) == [
        "cnn.pth",
        "lm.safetensors",
        "trainer.ckpt",
    ]


def test_two_inputs_with_one_output_are_refused_before_anything_is_written(modelzip, tmp_path):
    shutil.copy(SAMPLES / "digits_cnn.pth", tmp_path / "a.pth")
    shutil.copy(SAMPLES / "digits_cnn.pth", tmp_path / "a.pt")
    run = modelzip("quantize", "a.pth", "a.pt")
    assert run.exit_code == 2
    assert "would be the output of both" in run.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_is_an_input_still_to_come_is_refused(modelzip, tmp_path):
    shutil.copy(SAMPLES / "docs_lm.safetensors", tmp_path / "a.safetensors")
    shutil.copy(SAMPLES / "docs_lm.safetensors", tmp_path / "a.int8.safetensors")
    run = modelzip("quantize", "a.safetensors", "a.int8.safetensors", "-f")
    assert run.exit_code == 2
    assert "would be one of the inputs" in run.stderr


def test_several_files_give_a_line_each_and_jsonl_an_object_each(modelzip, sample):
    files = [sample(name) for name in ("digits_cnn.pth", "digits_mlp.pth")]
    plain = modelzip("quantize", *files)
    assert [line.split()[0] for line in plain.stdout.splitlines()] == ["ok", "ok", "2"]
    lines = modelzip("quantize", *files, "-f", "--format", "jsonl").stdout.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["schema_version"] * 3
    assert json.loads(lines[-1])["summary"]["done"] == 2


def test_a_directory_without_r_says_what_to_type(modelzip, folder):
    run = modelzip("quantize", folder)
    assert run.exit_code == 2
    assert "-r takes every checkpoint in it" in run.stderr


def test_a_link_to_a_folder_above_does_not_loop(modelzip, folder):
    (folder / "deep" / "loop").symlink_to(folder)
    run = modelzip("quantize", "-r", folder, "-n", "--json")
    assert len(run.json["runs"]) == 6
