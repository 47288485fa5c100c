"""The journal of a batch: what its lines say, and what is believed of them."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import modelzip_cli.batch.journal
from modelzip_cli.batch.journal import NAME, Journal
from modelzip_cli.errors import CannotWrite

RECIPE = {"scheme": "int8", "layout": "native"}


@pytest.fixture
def pair(tmp_path):
    """A source, and its output in a folder of its own."""
    source, output = tmp_path / "in" / "a.pth", tmp_path / "out" / "a.int8.safetensors"
    for path, text in ((source, b"source"), (output, b"output")):
        path.parent.mkdir()
        path.write_bytes(text)
    return source, output


@pytest.fixture
def noted(pair, tmp_path):
    """The folder of a journal that has the output as done."""
    source, output = pair
    Journal(tmp_path / "out", "quantize", RECIPE).note_done(source, output, output, {"ratio": 2.0})
    return tmp_path / "out"


def lines(folder):
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_a_line_says_what_became_of_which_file_in_relative_paths(noted, pair, tmp_path):
    source, output = pair
    (line,) = lines(noted)
    assert line["status"] == "ok"
    assert (line["command"], line["recipe"], line["ratio"]) == ("quantize", RECIPE, 2.0)
    assert line["source"] == {"path": "../in/a.pth", "bytes": 6, "mtime_ns": source.stat().st_mtime_ns}
    assert line["output"] == {"path": "a.int8.safetensors", "bytes": 6, "mtime_ns": output.stat().st_mtime_ns}
    assert str(tmp_path) not in (noted / NAME).read_text()


def test_a_line_of_a_failure_has_its_error_and_makes_nothing_done(pair, tmp_path):
    source, output = pair
    journal = Journal(tmp_path / "out", "quantize", RECIPE)
    journal.note_failed(source, {"kind": "broken-checkpoint", "message": "cut", "exit_code": 1})
    (line,) = lines(tmp_path / "out")
    assert (line["status"], line["output"], line["error"]["message"]) == ("failed", None, "cut")
    assert not Journal(tmp_path / "out", "quantize", RECIPE).is_done(source, output)


def test_what_is_noted_is_done_and_made_for_the_next_run(noted, pair):
    journal = Journal(noted, "quantize", RECIPE)
    assert journal.is_done(*pair)
    assert journal.made(pair[1])
    assert not journal.made(pair[0])


def test_a_line_counts_although_it_was_written_before_the_output_got_its_name(pair, tmp_path):
    source, output = pair
    pending = output.rename(output.with_name("pending"))
    Journal(tmp_path / "out", "quantize", RECIPE).note_done(source, output, pending, {})
    assert not Journal(tmp_path / "out", "quantize", RECIPE).is_done(source, output)
    pending.rename(output)
    assert Journal(tmp_path / "out", "quantize", RECIPE).is_done(source, output)


@pytest.mark.parametrize("command", ["quantize", "restore"])
@pytest.mark.parametrize("recipe", [RECIPE, {**RECIPE, "scheme": "int4-g64"}, {**RECIPE, "skip": ["*.bias"]}])
def test_another_command_or_recipe_finds_nothing_done(command, recipe, noted, pair):
    assert Journal(noted, command, recipe).is_done(*pair) == ((command, recipe) == ("quantize", RECIPE))


def test_another_version_finds_nothing_done(noted, pair, monkeypatch):
    monkeypatch.setattr(modelzip_cli.batch.journal, "__version__", "99.0")
    assert not Journal(noted, "quantize", RECIPE).is_done(*pair)


@pytest.mark.parametrize("which", [0, 1], ids=["source", "output"])
@pytest.mark.parametrize("change", ["size", "time", "gone", "another file of the same size"])
def test_what_changed_since_is_not_done(change, which, noted, pair):
    path = pair[which]
    before = path.stat()
    if change == "gone":
        path.unlink()
    elif change == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        path.write_bytes(b"longer than that" if change == "size" else b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (change != "size")))
    assert not Journal(noted, "quantize", RECIPE).is_done(*pair)


def test_the_last_line_of_an_output_wins(noted, pair):
    source, output = pair
    output.write_bytes(b"another output")
    journal = Journal(noted, "quantize", {"scheme": "int4"})
    journal.note_done(source, output, output, {})
    assert not Journal(noted, "quantize", RECIPE).is_done(source, output)
    assert Journal(noted, "quantize", {"scheme": "int4"}).is_done(source, output)


def test_the_journal_moves_with_its_folder(noted, pair, tmp_path):
    source, _ = pair
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(noted, moved / "out")
    shutil.move(source.parent, moved / "in")
    assert Journal(moved / "out", "quantize", RECIPE).is_done(moved / "in" / "a.pth", moved / "out" / pair[1].name)


def test_lines_are_only_added(noted, pair):
    before = (noted / NAME).read_bytes()
    journal = Journal(noted, "quantize", RECIPE)
    journal.note_failed(pair[0], {})
    journal.note_done(*pair, pair[1], {})
    after = (noted / NAME).read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 3


def test_a_torn_last_line_is_passed_over_and_does_not_spoil_the_next(noted, pair):
    whole = (noted / NAME).read_bytes()
    (noted / NAME).write_bytes(whole[: len(whole) // 2])
    journal = Journal(noted, "quantize", RECIPE)
    assert not journal.is_done(*pair)
    journal.note_done(*pair, pair[1], {})
    assert Journal(noted, "quantize", RECIPE).is_done(*pair)


FOREIGN = {
    "empty": b"",
    "no JSON": b"notes on my models\n\n# todo\n",
    "not UTF-8": b"\xff\xfe\x00\x80\n",
    "zeros": bytes(5000),
    "other values": b'1\nnull\n"ok"\n[]\n[{"status": "ok"}]\n{}\n',
    "wrong types": b'{"status": "ok", "output": null}\n{"status": "ok", "output": {"path": ["a"]}}\n'
    b'{"status": "ok", "output": "path"}\n{"status": "ok", "output": {"path": {}}}\n{"status": {"ok": 1}}\n',
    "another tool's": b'{"status": "ok", "file": "a.pth", "time": 3}\n',
    "deep": b"[" * 100_000 + b"\n" + b'{"a":' * 50_000 + b"\n",
    "a long number": b'{"status": "ok", "output": {"path": 1' + b"0" * 10_000 + b"}}\n",
    "numbers that are none": b'{"status": "ok", "output": {"path": "a.int8.safetensors", "bytes": NaN}}\n',
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_lines_of_others_are_passed_over_and_kept(text, noted, pair):
    good = (noted / NAME).read_bytes()
    (noted / NAME).write_bytes(text + good)
    assert Journal(noted, "quantize", RECIPE).is_done(*pair) == (not text or text.endswith(b"\n"))
    (noted / NAME).write_bytes(text)
    journal = Journal(noted, "quantize", RECIPE)
    assert not journal.is_done(*pair)
    journal.note_done(*pair, pair[1], {})
    assert Journal(noted, "quantize", RECIPE).is_done(*pair)
    assert (noted / NAME).read_bytes().startswith(text)


def test_names_that_are_no_text_are_found_again(tmp_path):
    source = tmp_path / os.fsdecode(b"caf\xe9\n\xe2\x80\xa8 a.pth")
    output = tmp_path / os.fsdecode(b"caf\xe9 out.safetensors")
    source.write_bytes(b"x")
    output.write_bytes(b"y")
    Journal(tmp_path, "quantize", RECIPE).note_done(source, output, output, {})
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 1
    assert (tmp_path / NAME).read_bytes().isascii()
    assert Journal(tmp_path, "quantize", RECIPE).is_done(source, output)


@pytest.mark.parametrize("what", ["directory", "pipe", "link", "link to nothing", "device", "no folder"])
def test_a_journal_that_cannot_be_is_one_clear_error_and_is_never_waited_for(what, pair, tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if what == "directory":
        (folder / NAME).mkdir()
    elif what == "pipe":
        os.mkfifo(folder / NAME)
    elif what == "no folder":
        folder.rmdir()
    else:
        target = {"link": precious, "link to nothing": tmp_path / "nowhere", "device": "/dev/zero"}[what]
        (folder / NAME).symlink_to(target)
    journal = Journal(folder, "quantize", RECIPE)  # reading it takes no time and no memory
    assert not journal.is_done(*pair)
    with pytest.raises(CannotWrite, match=rf"{NAME}: cannot write: "):
        journal.begin()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_journal_too_large_to_read_is_not_read(noted, pair, monkeypatch):
    monkeypatch.setattr(modelzip_cli.batch.journal, "MOST_BYTES", 10)
    assert not Journal(noted, "quantize", RECIPE).is_done(*pair)
