"""Inputs and outputs of a batch: what is found, what is called what, and every collision before the first write."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from modelzip_cli.batch.jobs import Selection, find_inputs, plan_jobs, read_filelist
from modelzip_cli.batch.names import output_name
from modelzip_cli.containers.streams import STANDARD
from modelzip_cli.errors import FileNotThere, OutputExists, OutputIsSource, UsageError
from modelzip_cli.recipe import Recipe


@pytest.fixture
def put(tmp_path):
    """Make files of a few bytes, with their folders: nothing here opens them as checkpoints."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path

    return make


def names(items, root):
    return [str(item.path.relative_to(root)) for item in items]


def plan(selection):
    return plan_jobs(find_inputs(selection), selection, lambda path: output_name(path, Recipe()))


def outputs(selection, root):
    return [str(job.output.relative_to(root)) for job in plan(selection)]


# Inputs


def test_every_kind_of_checkpoint_is_found_and_nothing_else(put):
    kinds = "abcdefg"
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pt2", ".pth.tar")
    found = [kind + suffix for kind, suffix in zip(kinds, suffixes, strict=True)]
    root = put(*found, "h.txt", "i.json", "j.tar", "k.gguf", "l", "modelzip.jsonl", ".modelzip-1-0123456789abcdef.tmp")
    assert names(find_inputs(Selection((root,), recursive=True)), root) == found


def test_the_order_is_that_of_names_and_files_come_before_folders(put):
    root = put("b.pth", "a/z.pth", "c/a.pth", "a.pth", "a/b/c.pth")
    found = names(find_inputs(Selection((root,), recursive=True)), root)
    assert found == ["a.pth", "b.pth", "a/z.pth", "a/b/c.pth", "c/a.pth"]


def test_a_file_that_is_named_in_several_ways_is_done_once(put, monkeypatch):
    root = put("a.pth", "deep/b.pth")
    (root / "link.pth").symlink_to("a.pth")
    monkeypatch.chdir(root)
    paths = tuple(map(Path, ("a.pth", "./a.pth", "deep/../a.pth", "link.pth", "deep", ".", "deep/b.pth")))
    assert names(find_inputs(Selection(paths, recursive=True)), Path()) == ["a.pth", "deep/b.pth"]


def test_links_to_folders_are_not_followed_so_nothing_loops(put):
    root = put("a.pth", "deep/b.pth")
    (root / "deep" / "up").symlink_to(root)
    (root / "deep" / "itself").symlink_to("itself")
    (root / "itself.pth").symlink_to("itself.pth")
    found = names(find_inputs(Selection((root,), recursive=True)), root)
    assert found == ["a.pth", "itself.pth", "deep/b.pth"]


def test_a_link_to_nothing_is_an_input_that_will_fail_and_no_error_yet(put):
    root = put("a.pth")
    (root / "gone.pth").symlink_to("nowhere.pth")
    assert names(find_inputs(Selection((root,), recursive=True)), root) == ["a.pth", "gone.pth"]


def test_a_directory_model_is_one_input_and_is_not_entered(put):
    root = put("hub/bert/config.json", "hub/bert/model.safetensors", "hub/bert/deep/x.pth", "hub/a.pth")
    assert names(find_inputs(Selection((root,), recursive=True)), root) == ["hub/bert", "hub/a.pth"]


def test_a_link_to_a_directory_model_is_that_model(put):
    root = put("cache/snapshot/config.json", "models/a.pth")
    (root / "models" / "bert").symlink_to(root / "cache" / "snapshot")
    found = names(find_inputs(Selection((root / "models",), recursive=True)), root / "models")
    assert sorted(found) == ["a.pth", "bert"]


def test_an_argument_that_is_not_there_ends_it_before_anything_is_done(put):
    root = put("model.pth")
    with pytest.raises(FileNotThere, match=r"did you mean 'model\.pth'"):
        find_inputs(Selection((root / "model.pth", root / "modle.pth")))


def test_globs_see_the_name_and_the_path_below_the_argument(put):
    root = put("a.pth", "deep/a.pth", "deep/b.pth", "other/b.pth")

    def found(include=(), exclude=()):
        return names(find_inputs(Selection((root,), recursive=True, include=include, exclude=exclude)), root)

    assert found(include=("deep/*",)) == ["deep/a.pth", "deep/b.pth"]
    assert found(include=("a.pth",)) == ["a.pth", "deep/a.pth"]
    assert found(include=("*.pth",), exclude=("b*", "deep/*")) == ["a.pth"]
    assert found(include=(str(root / "a.pth"),)) == []


# File lists


@pytest.mark.parametrize(
    "text",
    [b"a.pth\nb c.pth\n", b"a.pth\nb c.pth", b"a.pth\r\nb c.pth\r\n", b"\n\na.pth\n  \n\nb c.pth\n\n"],
    ids=["newline at the end", "none at the end", "CRLF", "empty lines"],
)
def test_a_file_list_is_one_path_a_line(text, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(text)
    assert read_filelist(path) == (Path("a.pth"), Path("b c.pth"))


def test_the_mark_that_some_editors_put_first_is_no_part_of_a_path(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa.pth\r\n")
    assert read_filelist(path) == (Path("a.pth"),)


def test_spaces_and_bytes_that_are_no_text_stay_in_a_path(tmp_path):
    path = tmp_path / "list.txt"
    raw = [b" leading.pth", b"trailing ", b"caf\xe9.pth", "漢字.pth".encode(), b"# no comment.pth"]
    path.write_bytes(b"\n".join(raw))
    assert [os.fsencode(found) for found in read_filelist(path)] == raw


def test_a_dash_reads_the_list_from_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.pth\nb.pth")))
    assert read_filelist(STANDARD) == (Path("a.pth"), Path("b.pth"))


@pytest.mark.parametrize("what", ["missing", "directory"])
def test_a_file_list_that_cannot_be_read_is_a_usage_error(what, tmp_path):
    path = tmp_path if what == "directory" else tmp_path / "list.txt"
    with pytest.raises(UsageError, match=r"^--filelist .*: cannot be read: "):
        read_filelist(path)


# Outputs


def test_outputs_lie_beside_their_sources(put):
    root = put("a.pth", "deep/b.pth")
    assert outputs(Selection((root,), recursive=True), root) == ["a.int8.safetensors", "deep/b.int8.safetensors"]


def test_an_output_folder_mirrors_each_directory_that_was_named(put):
    root = put("one/a.pth", "one/deep/b.pth", "two/c.pth", "d.pth")
    arguments = (root / "one", root / "two", root / "d.pth")
    selection = Selection(arguments, recursive=True, output_dir=root / "out")
    expected = ["a.int8.safetensors", "deep/b.int8.safetensors", "c.int8.safetensors", "d.int8.safetensors"]
    assert outputs(selection, root / "out") == expected


def test_a_directory_model_lies_in_the_output_folder_under_its_name(put):
    root = put("models/bert/config.json", "models/bert/model.safetensors")
    for argument in ("models", "models/bert"):
        selection = Selection((root / argument,), recursive=True, output_dir=root / "out")
        assert outputs(selection, root) == ["out/bert.int8"]


# Collisions


@pytest.mark.parametrize("pair", [("a.pth", "a.safetensors"), ("one/a.pth", "two/a.pth"), ("a.pth", "a.pth.tar")])
def test_two_inputs_with_one_output_are_refused(pair, put):
    root = put(*pair)
    selection = Selection(tuple(root / name for name in pair), output_dir=root / "out", force=True)
    with pytest.raises(UsageError, match=r"would be the output of both .*a.* and "):
        plan(selection)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_output_that_is_another_input_is_refused_whatever_it_is_called(link, put):
    root = put("a.pth", "b.pth")
    target = root / "a.int8.safetensors"
    if link is None:
        (root / "b.pth").rename(target)
        second = target
    else:
        second = root / "b.pth"
        link(second, target)
    with pytest.raises(OutputIsSource, match=r"a\.int8\.safetensors: the output would be one of the inputs"):
        plan(Selection((root / "a.pth", second), force=True))


def test_an_output_folder_that_is_a_link_to_that_of_the_inputs_is_seen_through(put):
    root = put("in/a.pth", "in/a.int8.safetensors")
    (root / "out").symlink_to(root / "in")
    paths = root / "in" / "a.pth", root / "in" / "a.int8.safetensors"
    with pytest.raises(OutputIsSource):
        plan(Selection(paths, output_dir=root / "out", force=True))


def test_outputs_that_exist_are_counted_in_one_line(put):
    root = put("a.pth", "b.pth", "a.int8.safetensors", "b.int8.safetensors")
    paths = root / "a.pth", root / "b.pth"
    with pytest.raises(OutputExists, match=r"^2 outputs exist, such as .*a\.int8\.safetensors; -f replaces"):
        plan(Selection(paths))
    with pytest.raises(OutputExists, match=r"^[^ ]*a\.int8\.safetensors exists; "):
        plan(Selection(paths[:1]))


def test_a_link_to_nothing_counts_as_an_output_that_exists(put):
    root = put("a.pth")
    (root / "a.int8.safetensors").symlink_to("nowhere")
    with pytest.raises(OutputExists):
        plan(Selection((root / "a.pth",)))


def test_existing_outputs_may_be_left_replaced_or_planned(put):
    root = put("a.pth", "b.pth", "a.int8.safetensors")
    paths = root / "a.pth", root / "b.pth"
    assert [job.skipped for job in plan(Selection(paths, skip_existing=True))] == ["output exists", None]
    assert [job.skipped for job in plan(Selection(paths, force=True))] == [None, None]
    assert [job.skipped for job in plan(Selection(paths, dry_run=True))] == [None, None]


def test_one_name_for_several_inputs_is_refused(put):
    root = put("a.pth", "b.pth")
    with pytest.raises(UsageError, match="2 inputs; use --output-dir"):
        plan(Selection((root / "a.pth", root / "b.pth"), output=root / "out.safetensors"))


def test_standard_input_is_no_part_of_a_batch(put):
    root = put("a.pth")
    for selection in (Selection((root / "a.pth", STANDARD)), Selection((STANDARD,), output_dir=root)):
        with pytest.raises(UsageError, match="standard input"):
            plan(selection)


# Where the journal is


def test_the_journal_is_with_the_outputs_else_in_the_first_directory(put):
    root = put("a.pth", "one/a.pth", "two/b.pth")
    paths = root / "a.pth", root / "one", root / "two"
    assert Selection(paths, recursive=True, output_dir=root / "out").journal_folder == root / "out"
    assert Selection(paths, recursive=True).journal_folder == root / "one"
    assert Selection(paths[:1], recursive=True).journal_folder is None
    assert Selection(paths[:1]).journal_folder is None
