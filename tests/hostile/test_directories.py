"""Hostile Hugging Face directories and native ones: names, links, pipes, indexes, and shards that changed places."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelzip_cli.containers import hf_directory
from modelzip_cli.errors import BrokenCheckpoint, CannotWrite, ModelzipError, UsageError
from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.single import Settings, compress_file, restore_file
from modelzip_cli.source import open_source
from tests.hostile.makers import read_all
from tests.real.makers import hub_cache

Index = dict[str, Any]
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
RECIPE = Recipe(scheme="keep", rules=(Rule("a", "int8"), Rule("b", "int4-g32")))


def model(folder: Path, *, seed: int = 0) -> Path:
    """A model in two shards with its index, its configuration and a file beside."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for name, shard in zip("ab", SHARDS, strict=True):
        save_file({name: torch.randn(4, 33, generator=generator)}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1056}, "weight_map": dict(zip("ab", SHARDS, strict=True))}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def compress(folder: Path, output: Path, **settings: Any) -> None:
    compress_file(folder, output, RECIPE, Settings(**settings), command="quantize")


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    return model(tmp_path / "model")


NATIVE = {*(name.replace(".safetensors", ".modelzip.safetensors") for name in SHARDS), "modelzip.index.json"}


def test_what_the_others_are_made_from_is_compressed_and_comes_back(folder, tmp_path):
    compress(folder, tmp_path / "small")
    assert names_in(tmp_path / "small") == {*NATIVE, "config.json", "tokenizer.json"}
    restore_file(tmp_path / "small", tmp_path / "back", Settings(), dtype=None, most_bytes=None)
    assert names_in(tmp_path / "back") == names_in(folder)


# The index

EVIL_NAMES: tuple[Any, ...] = (
    "..",
    ".",
    "../model/" + SHARDS[0],
    "./" + SHARDS[0],
    "/etc/passwd",
    "a/../" + SHARDS[0],
    "..\\" + SHARDS[0],
    "C:\\model.safetensors",
    SHARDS[0] + "\0",
    SHARDS[0] + "\n",
    "\x1b[2J.safetensors",
    "\u202e.safetensors",
    ".hidden.safetensors",
    "-",
    "CON",
    "x" * 300 + ".safetensors",
    "",
    0,
    1.5,
    True,
    None,
    [SHARDS[0]],
    {"name": SHARDS[0]},
)
FIRST = f'"{SHARDS[0]}"'
TEXTS = {
    "a key twice": f'{{"weight_map": {{"a": {FIRST}, "a": "{SHARDS[1]}"}}}}',
    "a key twice by an escape": f'{{"weight_map": {{"a": {FIRST}, "\\u0061": "{SHARDS[1]}"}}}}',
    "two weight maps": f'{{"weight_map": {{"a": "x"}}, "weight_map": {{"a": {FIRST}}}}}',
    "a number of 5,000 digits": f'{{"metadata": {{"total_size": {"9" * 5000}}}, "weight_map": {{"a": "x"}}}}',
    "NaN": '{"metadata": {"total_size": NaN}, "weight_map": {"a": "x"}}',
    "a lone surrogate": '{"weight_map": {"\\ud800": "x"}}',
    "100,000 lists in lists": "[" * 100_000,
    "100,000 dicts in dicts": '{"a":' * 100_000,
    "a weight_map that is text": f'{{"weight_map": {FIRST}}}',
    "a metadata that is a list": f'{{"metadata": [], "weight_map": {{"a": {FIRST}}}}}',
    "a mark of byte order": '\ufeff{"weight_map": {}}',
    "UTF-16": '{"weight_map": {}}'.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("name", EVIL_NAMES, ids=lambda name: repr(name)[:30])
@pytest.mark.parametrize("index", [INDEX, "modelzip.index.json"])
def test_an_index_with_an_evil_name_is_refused_in_inert_words(name, index, folder, tmp_path):
    (folder / INDEX).rename(folder / index)
    (folder / index).write_text(json.dumps({"weight_map": {"a": name, "b": SHARDS[1]}}))
    with pytest.raises(BrokenCheckpoint) as caught:
        read_all(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", TEXTS)
def test_an_index_that_is_not_strict_json_is_refused(kind, folder):
    (folder / INDEX).write_text(TEXTS[kind])
    with pytest.raises(BrokenCheckpoint):
        read_all(folder)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e400"])
@pytest.mark.parametrize("layout", ["native", "dense"])
def test_a_number_in_an_index_that_json_cannot_hold_does_not_get_into_the_output(number, layout, folder, tmp_path):
    index = (folder / INDEX).read_text().replace("1056", f'1056, "loss": {number}')
    (folder / INDEX).write_text(index)
    try:
        compress_file(folder, tmp_path / "out", Recipe(layout=layout), Settings(), command="quantize")
    except ModelzipError:
        return
    for path in (tmp_path / "out").glob("*.index.json"):
        assert "Infinity" not in path.read_text()


def test_an_index_over_the_limit_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(hf_directory, "MOST_INDEX", 50)
    with pytest.raises(BrokenCheckpoint, match="longer"):
        read_all(folder)


# Links


def test_links_as_the_cache_of_the_hub_has_them_are_followed_and_copied_as_files(folder, tmp_path):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    snapshot = hub_cache(tmp_path / "hub", folder)
    compress(snapshot, tmp_path / "small")
    assert names_in(tmp_path / "small") == {*NATIVE, "config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert not any(path.is_symlink() for path in (tmp_path / "small").rglob("*"))


OUTWARD = {
    "absolute": lambda tmp_path: tmp_path / "secret",
    "relative": lambda tmp_path: Path("../secret"),
    "by the folder": lambda tmp_path: Path("../model/../secret"),
    "by another link": lambda tmp_path: Path("hop"),
    "through a folder": lambda tmp_path: Path("out/secret"),
    "to a process": lambda tmp_path: Path("/proc/self/environ"),
    "to a device": lambda tmp_path: Path("/dev/zero"),
    "to nothing": lambda tmp_path: Path("nothing"),
    "to itself": lambda tmp_path: Path("link.json"),
    "to a folder": lambda tmp_path: Path(".."),
}


@pytest.mark.parametrize("way", OUTWARD)
@pytest.mark.parametrize("layout", ["native", "dense"])
def test_a_link_out_of_the_folder_carries_nothing_into_the_output(way, layout, folder, tmp_path):
    (tmp_path / "secret").write_text("a secret")
    (folder / "hop").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    (folder / "link.json").symlink_to(OUTWARD[way](tmp_path))
    compress_file(folder, tmp_path / "small", Recipe(layout=layout), Settings(), command="quantize")
    assert not {"link.json", "hop", "out"} & {path.name for path in (tmp_path / "small").iterdir()}
    assert not any(path.read_bytes() == b"a secret" for path in (tmp_path / "small").rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["snapshots/model", "models--a--b/snapshots/model", "snapshots/snapshots/model"])
def test_a_folder_that_only_looks_like_a_snapshot_of_the_hub_reaches_no_file_around_it(place, tmp_path):
    folder = model(tmp_path / "home" / place)
    around = folder.parent.parent
    (around / "secret").write_text("a secret")
    (around / "blobs").mkdir()
    (around / "blobs" / "fine").write_text("fine")
    (folder / "link.json").symlink_to("../../secret")
    (folder / "up.json").symlink_to("../../blobs/../secret")
    compress(folder, tmp_path / "small")
    assert names_in(tmp_path / "small") == {*NATIVE, "config.json", "tokenizer.json"}


def test_a_link_to_a_file_inside_the_folder_is_copied_as_a_file(folder, tmp_path):
    (folder / "same.json").symlink_to("tokenizer.json")
    compress(folder, tmp_path / "small")
    assert (tmp_path / "small" / "same.json").read_text() == '{"version": "1.0"}'
    assert not (tmp_path / "small" / "same.json").is_symlink()


def test_folders_that_are_links_in_a_circle_are_not_entered(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "sub" / "one").symlink_to("two")
    (folder / "sub" / "two").symlink_to("one")
    compress(folder, tmp_path / "small")
    assert names_in(tmp_path / "small") == {*NATIVE, "config.json", "tokenizer.json"}


@pytest.mark.parametrize("name", [SHARDS[0], INDEX, "config.json"])
@pytest.mark.parametrize("target", ["loop", "nothing", "folder", "pipe", "device"])
def test_a_file_of_the_model_that_is_no_file_is_refused_or_left_out_at_once(name, target, folder, tmp_path):
    (folder / name).unlink()
    if target == "pipe":
        os.mkfifo(folder / name)
    elif target == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to({"loop": name, "nothing": "nowhere", "device": "/dev/zero"}[target])
    if name == "config.json":
        compress(folder, tmp_path / "small")
        assert not (tmp_path / "small" / "config.json").is_file()
    else:
        with pytest.raises(ModelzipError):
            compress(folder, tmp_path / "small")
        assert {path.name for path in tmp_path.iterdir()} == {"model"}


# Files beside the weights


@contextlib.contextmanager
def giving_up() -> Iterator[None]:
    """Turn a call that hangs into a failure."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_pipes_and_sockets_beside_the_weights_do_not_hang_and_are_not_copied(folder, tmp_path):
    (folder / "sub").mkdir()
    for name in ("pipe", "vocab.txt", "sub/pipe.json"):
        os.mkfifo(folder / name)
    compress(folder, tmp_path / "small")
    assert names_in(tmp_path / "small") == {*NATIVE, "config.json", "tokenizer.json"}


def test_a_file_that_becomes_a_pipe_while_the_weights_are_compressed_does_not_hang(folder, tmp_path):
    def begin(label: str, total: int) -> Callable[[int], None]:
        (folder / "tokenizer.json").unlink()
        os.mkfifo(folder / "tokenizer.json")
        return lambda _: None

    with giving_up(), pytest.raises(ModelzipError, match=r"tokenizer\.json.*no longer a regular file"):
        compress(folder, tmp_path / "small", begin=begin)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_file_that_goes_away_is_named_in_one_line_and_nothing_is_left(folder, tmp_path):
    def begin(label: str, total: int) -> Callable[[int], None]:
        (folder / "tokenizer.json").unlink()
        return lambda _: None

    with pytest.raises(ModelzipError, match=r"tokenizer\.json.*cannot read") as caught:
        compress(folder, tmp_path / "small", begin=begin)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (1, False)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read any file")
@pytest.mark.parametrize("name", ["tokenizer.json", "sub"])
def test_what_may_not_be_read_is_named_in_one_line_and_nothing_is_left(name, folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / name).chmod(0)
    with pytest.raises(ModelzipError, match=name) as caught:
        compress(folder, tmp_path / "small")
    (folder / name).chmod(0o700)
    assert caught.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("over", [0, 1])
def test_10_000_files_beside_the_weights_are_copied_and_one_more_is_refused(over, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_directory, "MOST_FILES", 100)  # of 10,000, to be done sooner
    for number in range(98 + over):
        (folder / f"{number}.txt").touch()
    if over:
        with pytest.raises(UsageError, match="more than 100 files"):
            compress(folder, tmp_path / "small")
    else:
        compress(folder, tmp_path / "small")
        assert len(names_in(tmp_path / "small")) == 103


def test_the_limit_on_files_is_as_documented():
    assert hf_directory.MOST_FILES == 10_000


def test_files_with_odd_names_are_copied_under_them(folder, tmp_path):
    odd = ["a\nb", "-f", " ", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "x" * 255, "*", "é漢"]
    for name in odd:
        (folder / name).write_text(name, errors="surrogateescape")
    compress(folder, tmp_path / "small")
    for name in odd:
        assert (tmp_path / "small" / name).read_bytes() == os.fsencode(name)


def test_no_python_file_of_a_directory_is_imported_however_it_is_called(folder, tmp_path, monkeypatch):
    for name in ("modeling_x.py", "sitecustomize.py", "numpy.py", "torch.py", "json.py", "modelzip_cli.py", "x.pth"):
        (folder / name).write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.A", "AutoConfig": "modeling_x.B"}}')
    before = set(sys.modules)
    monkeypatch.chdir(folder)
    compress(folder, tmp_path / "small")
    assert not (tmp_path / "canary").exists()
    assert not {"modeling_x", "sitecustomize"} & (set(sys.modules) - before)


# Native directories


@pytest.fixture(scope="module")
def natives(tmp_path_factory) -> dict[str, Path]:
    """Two models of one shape, compressed; only the weights differ."""
    root = tmp_path_factory.mktemp("natives")
    for number, name in enumerate(("one", "two")):
        compress(model(root / "sources" / name, seed=number), root / name)
    return {name: root / name for name in ("one", "two")}


@pytest.fixture
def native(natives, tmp_path) -> Path:
    return Path(shutil.copytree(natives["one"], tmp_path / "native"))


@pytest.mark.parametrize("which", sorted(NATIVE))
def test_every_flipped_bit_in_a_file_of_a_native_directory_is_refused_or_changes_nothing(which, native):
    good, path = read_all(native), native / which
    data, changed, refused = path.read_bytes(), [], 0
    step = 1 if which.endswith(".json") else 37  # test_flips.py takes every bit of such a file
    with path.open("r+b", buffering=0) as file:
        for place in range(0, len(data), step):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([data[place] ^ 1 << bit]))
                try:
                    if read_all(native) != good:
                        changed.append((place, bit))
                except ModelzipError:
                    refused += 1
            file.seek(place)
            file.write(data[place : place + 1])
    assert changed == []
    assert refused


@pytest.mark.parametrize("which", sorted(NATIVE))
def test_a_file_of_a_native_directory_cut_at_any_length_is_refused(which, native):
    path = native / which
    whole = path.read_bytes()
    accepted = []
    for length in reversed(range(0, len(whole) - (whole[-1:] == b"\n"))):
        with path.open("r+b") as file:
            file.truncate(length)
        try:
            read_all(native)
            accepted.append(length)
        except ModelzipError:
            pass
    assert accepted == []


def swap(native: Path, first: str, second: str) -> None:
    (native / first).rename(native / "between")
    (native / second).rename(native / first)
    (native / "between").rename(native / second)


def test_shards_of_a_native_directory_that_changed_places_are_refused(native, tmp_path):
    first, second = sorted(NATIVE)[:2]
    swap(native, first, second)
    for use in (read_all, lambda path: restore_file(path, tmp_path / "back", Settings(), dtype=None, most_bytes=None)):
        with pytest.raises(BrokenCheckpoint, match="in the index"):
            use(native)
    assert {path.name for path in tmp_path.iterdir()} == {"native"}


def test_a_shard_of_a_native_directory_under_another_index_keeps_the_name_of_its_own(native, tmp_path):
    first, second = sorted(NATIVE)[:2]
    swap(native, first, second)
    index = json.loads((native / "modelzip.index.json").read_text())
    index["weight_map"] = {"a": second, "b": first}
    (native / "modelzip.index.json").write_text(json.dumps(index))
    restore_file(native, tmp_path / "back", Settings(), dtype=None, most_bytes=None)
    found = json.loads((tmp_path / "back" / INDEX).read_text())["weight_map"]
    assert found == dict(zip("ab", SHARDS, strict=True))  # the manifests say which shard is which


def test_a_shard_of_another_model_is_taken_for_what_it_is(natives, native):
    """A checksum is not a signature: a whole shard of the same names reads, with its own weights and no others."""
    first = sorted(NATIVE)[0]
    shutil.copy(natives["two"] / first, native / first)
    found, one, two = read_all(native), read_all(natives["one"]), read_all(natives["two"])
    assert found.tensors == {"a": two.tensors["a"], "b": one.tensors["b"]}


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a native file and forge its digest."""
    import hashlib

    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["modelzip"])
    edit(manifest)
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
    header["__metadata__"]["modelzip"] = text
    header["__metadata__"]["modelzip.sha256"] = hashlib.sha256(text.encode()).hexdigest()
    new = json.dumps(header, ensure_ascii=False).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/tmp/a", "a/b", ".", "..", "", ".bashrc", "a\0", "a\n", "x" * 300]
)
def test_the_name_that_a_shard_wants_to_be_restored_to_is_never_a_path(name, native, tmp_path):
    edit_manifest(native / sorted(NATIVE)[0], lambda manifest: manifest["source"].update(name=name))
    with pytest.raises(ModelzipError):
        restore_file(native, tmp_path / "back", Settings(), dtype=None, most_bytes=None)
    assert {path.name for path in tmp_path.iterdir()} == {"native"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX, SHARDS[1]])
def test_a_shard_cannot_take_the_name_of_another_file_of_the_directory(name, native, tmp_path):
    edit_manifest(native / sorted(NATIVE)[0], lambda manifest: manifest["source"].update(name=name))
    with pytest.raises(ModelzipError):
        restore_file(native, tmp_path / "back", Settings(), dtype=None, most_bytes=None)
    assert {path.name for path in tmp_path.iterdir()} == {"native"}


@pytest.mark.parametrize("name", ["config.json", SHARDS[0], "../x", "/tmp/x", 1, [], "modelzip.index.json/"])
def test_the_index_cannot_be_restored_over_another_file(name, native, tmp_path):
    index = json.loads((native / "modelzip.index.json").read_text())
    (native / "modelzip.index.json").write_text(json.dumps(index | {"index": name}))
    with pytest.raises(ModelzipError):
        restore_file(native, tmp_path / "back", Settings(), dtype=None, most_bytes=None)
    assert {path.name for path in tmp_path.iterdir()} == {"native"}


def test_an_output_error_is_one_of_writing(folder, tmp_path):
    (tmp_path / "small").write_text("precious")
    with pytest.raises((UsageError, CannotWrite)):
        compress(folder, tmp_path / "small", force=True)
    assert (tmp_path / "small").read_text() == "precious"


def test_a_directory_is_closed_whatever_is_wrong_with_it(folder):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    before = len(os.listdir("/proc/self/fd"))
    (folder / SHARDS[1]).write_bytes(b"not a checkpoint")
    for _ in range(3):
        with pytest.raises(ModelzipError):
            open_source(folder)
    assert len(os.listdir("/proc/self/fd")) == before
