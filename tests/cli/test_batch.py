"""Many checkpoints in one run: folders, lists of files, what fails beside what does not, and runs that were stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tests import checkpoints
from tests.conftest import GIVE_UP, PROGRAM, SAMPLES
from tests.hostile.makers import Member, call, entry, mapping, read_all, safetensors_of, text, torch_file, zip_of

JOURNAL = "modelzip.jsonl"


def copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def statuses(run) -> dict[str, str]:
    """File name -> the first word of its line."""
    return {Path(line.split()[1].rstrip(":")).name: line.split()[0] for line in run.stdout.splitlines()[:-1]}


@pytest.fixture
def folder(tmp_path):
    """A tree with good files, a broken one, a foreign one and a Hugging Face directory."""
    root = tmp_path / "models"
    (root / "deep" / "er").mkdir(parents=True)
    copy(SAMPLES / "digits_cnn.pth", root / "cnn.pth")
    copy(SAMPLES / "docs_lm.safetensors", root / "deep" / "lm.safetensors")
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
    copy(SAMPLES / "digits_cnn.pth", tmp_path / "a.pth")
    copy(SAMPLES / "digits_cnn.pth", tmp_path / "a.pt")
    run = modelzip("quantize", "a.pth", "a.pt")
    assert run.exit_code == 2
    assert "would be the output of both" in run.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_is_an_input_still_to_come_is_refused(modelzip, tmp_path):
    copy(SAMPLES / "docs_lm.safetensors", tmp_path / "a.safetensors")
    copy(SAMPLES / "docs_lm.safetensors", tmp_path / "a.int8.safetensors")
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


# Good, odd and hostile files together


def sharded(path: Path) -> Path:
    """A directory of two shards with an index, as transformers writes it."""
    from safetensors.torch import save_file

    path.mkdir()
    shards = {f"model-0000{part}-of-00002.safetensors": f"layers.{part}.weight" for part in (1, 2)}
    for number, (shard, name) in enumerate(shards.items()):
        save_file({name: checkpoints.weights(64, 128, seed=number)}, path / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, name in shards.items()}
    index = {"metadata": {"total_size": 65536}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")
    return path


def exported(path: Path) -> Path:
    """The weights of a torch.export archive, with what stands around them."""
    meta = {"dtype": 7, "sizes": [{"as_int": 64}, {"as_int": 128}], "strides": [{"as_int": 128}, {"as_int": 1}]}
    payload = {"path_name": "weight_0", "is_param": True, "use_pickle": False}
    config = {"config": {"w": payload | {"tensor_meta": meta | {"storage_offset": {"as_int": 0}}}}}
    data = checkpoints.weights(64, 128).numpy().tobytes()
    members = {
        "m/data/weights/weight_0": data,
        "m/data/weights/model_weights_config.json": json.dumps(config).encode(),
        "m/models/model.json": b"{}",
        "m/archive_format": b"pt2",
        "m/byteorder": b"little",
    }
    path.write_bytes(zip_of([Member(name, data) for name, data in members.items()]))
    return path


def bomb(path: Path) -> Path:
    """Half a gigabyte of zeros in half a megabyte of zip."""
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(64, 64)}, stream)
    with zipfile.ZipFile(stream) as honest, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in honest.infolist():
            with archive.open(info.filename, "w") as member:
                if info.filename.endswith("data/0"):
                    for _ in range(64):
                        member.write(bytes(8 << 20))
                else:
                    member.write(honest.read(info))
    return path


def put(content: bytes):
    return lambda path: path.write_bytes(content)


GOOD = {
    "plain.pth": checkpoints.plain_pth,
    "trainer.ckpt": checkpoints.trainer_pth,
    "half.safetensors": checkpoints.bf16_safetensors,
    "legacy.pt": lambda path: torch.save(checkpoints.state_dict(), path, _use_new_zipfile_serialization=False),
    "module.bin": lambda path: torch.save(torch.nn.Linear(64, 128), path),
    "exported.pt2": exported,
    "best.pth.tar": checkpoints.tied_pth,
    "sharded": sharded,
    "nothing to treat.pth": lambda path: torch.save({"bias": checkpoints.weights(4)}, path),
}
BAD = {
    "cut.pth": lambda path: path.write_bytes((SAMPLES / "digits_cnn.pth").read_bytes()[:100_000]),
    "cut.safetensors": lambda path: path.write_bytes((SAMPLES / "docs_lm.safetensors").read_bytes()[:50_000]),
    "gguf.bin": put(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)),
    "pointer.safetensors": put(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "page.ckpt": put(b"<!DOCTYPE html><html>404</html>"),
    "empty.pth": put(b""),
    "bomb.pth": bomb,
    "hostile.pth": lambda path: torch_file(path, mapping({"model": call("os.system", text("touch canary"))})),
    "script.pt": put(zip_of([Member("a/constants.pkl", b""), Member("a/code/b.py", b""), Member("a/data.pkl", b"")])),
    "nan.pth": lambda path: torch.save({"w": torch.full((64, 128), float("nan"))}, path),
    "pipe.pth": os.mkfifo,
    "gone.pth": lambda path: path.symlink_to("nowhere.pth"),
    "loop.pth": lambda path: path.symlink_to("loop.pth"),
}


def state_of(folder: Path) -> dict[str, tuple]:
    """Every path below: what a link says, and size, time and content of a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        content = path.read_bytes() if path.is_file() and not link else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, status.st_mtime_ns, link, content)
    return found


def test_good_odd_and_hostile_files_go_through_one_run_with_a_row_each_and_nothing_is_lost(modelzip, tmp_path):
    root, out = tmp_path / "models", tmp_path / "out"
    (root / "deep").mkdir(parents=True)
    for number, (name, make) in enumerate((GOOD | BAD).items()):
        make((root / "deep" if number % 2 else root) / name)
    (root / "deep" / "up").symlink_to(root)
    (root / "notes.txt").write_text("not a checkpoint")
    before = state_of(root)

    run = modelzip("quantize", "-r", root, "--output-dir", out, "--scheme", "int4", "--json")

    assert run.exit_code == 6
    assert run.stderr == f"modelzip: error: {len(BAD)} of {len(GOOD | BAD)} files failed\n"
    rows = {Path(row["source"]["path"]).name: row for row in run.json["runs"]}
    assert len(run.json["runs"]) == len(rows) == len(GOOD | BAD)
    assert {name for name, row in rows.items() if "error" in row} == set(BAD)
    assert all(Path(rows[name]["error"]["message"].partition(": ")[0]).name == name for name in BAD)
    assert rows["hostile.pth"]["error"]["exit_code"] == 5
    assert "git lfs pull" in rows["pointer.safetensors"]["error"]["message"]
    assert run.json["summary"]["done"] == len(GOOD)
    assert state_of(root) == before
    outputs = {Path(rows[name]["output"]["path"]) for name in GOOD}
    assert all(path.exists() for path in outputs)
    files = {path for path in out.rglob("*") if path.is_file() and "sharded" not in path.parent.name}
    assert files == {path for path in outputs if path.is_file()} | {out / JOURNAL}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out"]  # no canary, no temporary
    noted = {Path(line["source"]["path"]).name: line["status"] for line in journal(out) if line["source"]}
    assert noted == {name: "ok" if name in GOOD else "failed" for name in noted}
    assert len(journal(out)) == len(GOOD | BAD)


@pytest.mark.parametrize("form", ["plain", "jsonl", "md", "json"])
def test_every_form_has_a_row_for_each_file(form, modelzip, tmp_path):
    for name in ("plain.pth", "half.safetensors"):
        GOOD[name](tmp_path / name)
    BAD["empty.pth"](tmp_path / "empty.pth")
    run = modelzip("quantize", "-r", ".", "--format", form, "-n")
    assert run.exit_code == 6
    lines = run.stdout.splitlines()
    if form == "jsonl":
        assert [next(iter(json.loads(line).keys() - {"schema_version"}), None) for line in lines]
        assert ["error" in json.loads(line) for line in lines] == [True, False, False, False]
        assert json.loads(lines[-1])["summary"]["failed"] == 1
    elif form == "json":
        assert [Path(row["source"]["path"]).name for row in run.json["runs"]] == [
            "empty.pth",
            "half.safetensors",
            "plain.pth",
        ]
    elif form == "md":
        cells = [line.split(" | ")[:2] for line in lines if line.startswith("| ")]
        assert [status for _, status in cells] == ["status", "---", "failed", "planned", "planned"]
    else:
        assert [line.split()[0] for line in lines] == ["failed", "planned", "planned", "2"]


def test_quiet_prints_outputs_on_one_stream_and_failures_on_the_other(modelzip, tmp_path):
    GOOD["plain.pth"](tmp_path / "plain.pth")
    BAD["empty.pth"](tmp_path / "empty.pth")
    run = modelzip("quantize", "empty.pth", "plain.pth", "-q")
    assert (run.exit_code, run.stdout) == (6, "plain.int8.safetensors\n")
    assert run.stderr.splitlines() == [
        "modelzip: error: empty.pth: the file is empty",
        "modelzip: error: 1 of 2 files failed",
    ]


def test_several_threads_give_the_files_and_the_rows_of_one(modelzip, tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    for number in range(12):
        make = checkpoints.trainer_pth if number % 3 else checkpoints.plain_safetensors
        make(root / f"{number}{'.pth' if number % 3 else '.safetensors'}")
    BAD["cut.pth"](root / "5-cut.pth")
    shown = {}
    for jobs in (1, 4):
        run = modelzip("quantize", "-r", "models", "--output-dir", f"out{jobs}", "-j", jobs, "-s", "int4-g64")
        assert run.exit_code == 6
        shown[jobs] = run.stdout.replace(f"out{jobs}", "out")
    assert shown[1] == shown[4]
    files = [{path.name: path.read_bytes() for path in (tmp_path / f"out{jobs}").glob("*.*")} for jobs in (1, 4)]
    assert {k: v for k, v in files[0].items() if k != JOURNAL} == {k: v for k, v in files[1].items() if k != JOURNAL}


def test_a_reader_that_goes_away_does_not_stop_a_batch(modelzip, environment, tmp_path):
    for number in range(6):
        checkpoints.plain_safetensors(tmp_path / f"{number}.safetensors")
    line = '"$0" quantize -r . --output-dir out -j 1; echo "code $?" >&2'
    command = ["sh", "-c", f"{{ {line}; }} | true", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=GIVE_UP)
    assert done.stderr == b"code 0\n"
    assert len([*(tmp_path / "out").glob("*.safetensors")]) == 6


# Folders of outputs


def test_a_folder_that_would_be_empty_is_not_left_behind(modelzip, tmp_path):
    BAD["cut.pth"](tmp_path / "a.pth")
    (tmp_path / "deep").mkdir()
    BAD["cut.pth"](tmp_path / "deep" / "b.pth")
    assert modelzip("quantize", "a.pth", "--output-dir", "single/deep").exit_code == 1
    assert modelzip("quantize", "-r", ".", "--output-dir", "out", "-n").exit_code == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "deep"]
    assert modelzip("quantize", "-r", ".", "--output-dir", "out").exit_code == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]


def test_a_folder_where_nothing_can_be_begun_is_not_made(modelzip, tmp_path):
    BAD["empty.pth"](tmp_path / "a.pth")
    run = modelzip("restore", "-r", ".", "--output-dir", "out", "--json")
    assert run.json["summary"]["failed"] == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["directory", "pipe", "link"])
def test_a_journal_that_cannot_be_written_is_one_line_before_any_work(what, modelzip, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        checkpoints.plain_safetensors(tmp_path / name)
    (tmp_path / "precious").write_text("precious")
    path = tmp_path / JOURNAL
    {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("precious")}[what]()
    before = state_of(tmp_path)
    run = modelzip("quantize", "-r", ".")
    assert (run.exit_code, run.stdout) == (1, "")
    assert run.stderr.startswith("modelzip: error: modelzip.jsonl: cannot write: ")
    assert run.stderr.count("\n") == 1
    assert state_of(tmp_path) == before


# The same line again


def test_the_same_line_again_has_nothing_to_do(modelzip, tmp_path):
    (tmp_path / "deep").mkdir()
    checkpoints.plain_pth(tmp_path / "a.pth")
    checkpoints.plain_safetensors(tmp_path / "deep" / "b.safetensors")
    sharded(tmp_path / "bert")
    line = ("quantize", "-r", ".", "--scheme", "int4-g64", "--set", "layers.*=int8", "--keep-extras")
    for extra in ((), ("--output-dir", "out")):
        first = modelzip(*line, *extra)
        assert (first.exit_code, first.stderr) == (0, "")
        before = state_of(tmp_path)
        again = modelzip(*line, *extra)
        assert (again.exit_code, again.stderr) == (0, "")
        assert again.stdout.splitlines()[-1].startswith("0 done, ")
        assert again.stdout.count("  done before") == 3
        assert state_of(tmp_path) == before


def test_dense_outputs_beside_their_sources_are_not_compressed_again(modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    line = ("quantize", "-r", ".", "--scheme", "fp16", "--layout", "dense")
    assert modelzip(*line).exit_code == 0
    again = modelzip(*line)
    assert (again.exit_code, again.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fp16.pth", "a.pth", JOURNAL]


def test_a_dry_run_knows_what_is_done_and_notes_nothing(modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    modelzip("quantize", "-r", ".", "--output-dir", "out")
    checkpoints.plain_pth(tmp_path / "b.pth")
    before = state_of(tmp_path)
    run = modelzip("quantize", "-r", ".", "--output-dir", "out", "-n", "--exclude", "*.safetensors")
    assert statuses(run) == {"a.pth": "skipped", "b.pth": "planned"}
    assert state_of(tmp_path) == before


def test_restore_over_a_folder_takes_what_is_compressed_and_leaves_the_rest(modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    checkpoints.trainer_pth(tmp_path / "b.ckpt")
    assert modelzip("quantize", "-r", ".").exit_code == 0
    copy(tmp_path / "a.int8.safetensors", tmp_path / "cut.safetensors")
    os.truncate(tmp_path / "cut.safetensors", 9000)
    expected = {
        "a.pth": "skipped",
        "b.ckpt": "skipped",
        "a.int8.safetensors": "ok",
        "b.int8.safetensors": "ok",
        "cut.safetensors": "failed",
    }
    run = modelzip("restore", "-r", ".")
    assert run.exit_code == 6
    assert statuses(run) == expected
    assert read_all(tmp_path / "b.int8.restored.ckpt").tensors.keys() == read_all(
        tmp_path / "b.ckpt"
    ).tensors.keys() - {
        name for name in read_all(tmp_path / "b.ckpt").tensors if "exp_avg" in name or name.endswith(".step")
    }
    (tmp_path / "cut.safetensors").unlink()
    again = modelzip("restore", "-r", ".")
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout.splitlines()[-1].startswith("0 done, ")


def test_what_failed_is_tried_again(modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    BAD["cut.pth"](tmp_path / "b.pth")
    line = ("quantize", "-r", ".", "--output-dir", "out", "--exclude", "out/*")
    assert statuses(modelzip(*line)) == {"a.pth": "ok", "b.pth": "failed"}
    again = modelzip(*line)
    assert again.exit_code == 6
    assert statuses(again) == {"a.pth": "skipped", "b.pth": "failed"}
    checkpoints.plain_pth(tmp_path / "b.pth")
    last = modelzip(*line)
    assert last.exit_code == 0
    assert statuses(last) == {"a.pth": "skipped", "b.pth": "ok"}
    assert [line["status"] for line in journal(tmp_path / "out")].count("failed") == 2


@pytest.mark.parametrize("what", ["source", "output", "recipe"])
def test_what_changed_since_is_neither_skipped_nor_replaced_without_f(what, modelzip, tmp_path):
    source = checkpoints.plain_pth(tmp_path / "a.pth")
    line = ["quantize", "-r", ".", "--exclude", "out/*", "--output-dir", "out"]
    assert modelzip(*line).exit_code == 0
    output = tmp_path / "out" / "a.int8.safetensors"
    if what == "source":
        checkpoints.trainer_pth(source)
    elif what == "output":
        output.write_bytes(b"changed by hand")
    else:
        line += ["--skip", "lm_head.*"]
    before = output.read_bytes()
    run = modelzip(*line)
    assert run.exit_code == 2
    assert (
        run.stderr
        == "modelzip: error: out/a.int8.safetensors exists; -f replaces, --skip-existing leaves what is there\n"
    )
    assert output.read_bytes() == before
    assert statuses(modelzip(*line, "-f")) == {"a.pth": "ok"}
    assert statuses(modelzip(*line)) == {"a.pth": "skipped"}


def test_f_does_everything_again(modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    for _ in range(2):
        run = modelzip("quantize", "-r", ".", "--output-dir", "out", "--exclude", "out/*", "-f")
        assert statuses(run) == {"a.pth": "ok"}
    assert [line["status"] for line in journal(tmp_path / "out")] == ["ok", "ok"]


# Stopped in the middle


@pytest.fixture
def start(tmp_path, environment):
    """Start the program; what still runs at the end of the test is killed."""
    running = []

    def begin(*arguments: object) -> subprocess.Popen:
        pipe, command = subprocess.PIPE, [PROGRAM, *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=tmp_path, env=environment))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def wait_until(ready, process: subprocess.Popen) -> None:
    give_up = time.monotonic() + GIVE_UP
    while not ready() and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.001)


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def largest_temporary(folder: Path) -> int:
    sizes = [0]
    for path in folder.glob(".modelzip-*"):
        with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
            sizes.append(path.stat().st_size)
    return max(sizes)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_after_a_stop_anywhere_the_same_line_does_the_rest_and_nothing_twice(
    number, threads, start, modelzip, tmp_path
):
    root, out = tmp_path / "models", tmp_path / "out"
    root.mkdir()
    first = checkpoints.plain_safetensors(root / "00.safetensors")
    for place in range(1, 24):
        copy(first, root / f"{place:02}.safetensors")
    line = ("quantize", "-r", "models", "--output-dir", "out", "-j", threads)
    for stop_at in (3, 10):
        process = start(*line)
        wait_until(lambda at=stop_at: len(files_in(out)) >= at, process)
        process.send_signal(number)
        process.communicate(timeout=GIVE_UP)
    done = files_in(out)
    assert len(done) >= 10
    run = modelzip(*line)
    assert (run.exit_code, run.stderr) == (0, "")
    after = files_in(out)
    assert len(after) == 24
    assert done.items() <= after.items()
    assert run.stdout.count("  done before") == len(done)
    assert len({(out / name).read_bytes()[-4096:] for name in after}) == 1
    assert sorted(path.name for path in out.iterdir()) == [*sorted(after), JOURNAL]


def test_a_stopped_batch_says_how_many_files_are_done(start, modelzip, tmp_path):
    for name in ("a", "b", "c"):
        checkpoints.plain_safetensors(tmp_path / f"{name}.safetensors")
    size = 2 << 20  # zeros that take a while, most of them a hole in the file
    header = {f"w{n}": entry([1024, size // 4096], n * size, (n + 1) * size) for n in range(96)}
    with (tmp_path / "z.safetensors").open("wb") as file:
        file.write(safetensors_of(header))
        file.truncate(file.tell() + 96 * size)
    line = ("quantize", "-r", ".", "--output-dir", "out", "--exclude", "out/*", "--coder", "bitpack")
    process = start(*line)
    wait_until(lambda: largest_temporary(tmp_path / "out") > 1 << 20, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=GIVE_UP)
    assert process.returncode == 130
    assert stdout.count(b"\n") == 3
    assert stderr.decode().splitlines() == [
        "modelzip: 3 of 4 files done; the same command line goes on from there",
        "modelzip: stopped by SIGINT; outputs that were not finished are gone",
    ]
    assert not [*(tmp_path / "out").glob(".modelzip-*")]
    (tmp_path / "z.safetensors").unlink()
    checkpoints.plain_pth(tmp_path / "z.pth")
    assert set(statuses(modelzip(*line)).values()) == {"skipped", "ok"}


# Lists of files


def test_a_file_list_adds_to_the_paths_and_its_order_is_kept(modelzip, tmp_path):
    names = ["b c.pth", "a.pth", os.fsdecode(b"caf\xe9.pth"), "last.pth"]
    for name in names:
        checkpoints.plain_pth(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"a.pth\r\n\r\ncaf\xe9.pth\r\nlast.pth")
    run = modelzip("quantize", "b c.pth", "--filelist", "list.txt", "--output-dir", "out", "--json")
    assert run.exit_code == 0
    assert [row["source"]["path"] for row in run.json["runs"]] == ["b c.pth", "a.pth", "caf\\udce9.pth", "last.pth"]
    assert os.fsencode(tmp_path / "out" / os.fsdecode(b"caf\xe9.int8.safetensors")) in [
        os.fsencode(path) for path in (tmp_path / "out").iterdir()
    ]


def test_a_file_list_may_come_from_standard_input(modelzip, tmp_path):
    for name in ("a.pth", "b.pth"):
        checkpoints.plain_pth(tmp_path / name)
    run = modelzip("quantize", "--filelist", "-", "-q", stdin=b"b.pth\na.pth\n")
    assert (run.exit_code, run.stdout) == (0, "b.int8.safetensors\na.int8.safetensors\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--filelist list.txt: cannot be read: No such file or directory"),
        (b"\n \r\n", "no input: name a checkpoint in the file list"),
        (b"a.pth\ngone.pth\n", "gone.pth: no such file"),
        (b"a.pth\n.\n", ".: a directory, but no Hugging Face model"),
        (b"a.pth\n-\n", "standard input (-) is one input"),
    ],
)
def test_a_file_list_with_a_mistake_ends_before_any_work(text, message, modelzip, tmp_path):
    checkpoints.plain_pth(tmp_path / "a.pth")
    if text is not None:
        (tmp_path / "list.txt").write_bytes(text)
    run = modelzip("quantize", "--filelist", "list.txt")
    assert run.exit_code == 2
    assert run.stderr.startswith(f"modelzip: error: {message}")
    assert run.stderr.count("\n") == 1
    assert not [*tmp_path.glob("*.safetensors")]


def test_directories_in_a_file_list_need_r_like_any_other(modelzip, tmp_path):
    (tmp_path / "deep").mkdir()
    checkpoints.plain_pth(tmp_path / "deep" / "a.pth")
    (tmp_path / "list.txt").write_text("deep\n")
    run = modelzip("quantize", "-r", "--filelist", "list.txt", "-q")
    assert run.stdout == "deep/a.int8.safetensors\n"


def test_the_journal_of_a_file_list_is_in_the_output_folder(modelzip, tmp_path):
    for name in ("a.pth", "b.pth"):
        checkpoints.plain_pth(tmp_path / name)
    line = ("quantize", "--filelist", "-", "--output-dir", "out")
    assert modelzip(*line, stdin=b"a.pth\nb.pth\n").exit_code == 0
    assert {line["source"]["path"] for line in journal(tmp_path / "out")} == {"../a.pth", "../b.pth"}
    assert statuses(modelzip(*line, stdin=b"a.pth\nb.pth\n")) == {"a.pth": "skipped", "b.pth": "skipped"}
