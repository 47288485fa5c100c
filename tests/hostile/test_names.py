"""Text from files is inert wherever it is shown: it moves no cursor, hides nothing, forges no line and no markup."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import weights
from tests.conftest import PROGRAM
from tests.hostile.makers import mapping, tensor, text, torch_file

EVIL = (
    "title\x1b]0;pwned\x07",
    "clear\x1b[2J\x1b[H",
    "c1\x9b2J",
    "delete\x7f\x08\x08",
    "line\nforged: 0.1 dB",
    "return\rover",
    "tab\tcolumn",
    "null\0",
    "bidi\u202egnp\u202c\u2066x\u2069",
    "separator\u2028\u2029",
    "invisible\u200b\ufeff\U000e0041",
    "[red]markup[/red]",
    "[/]",
    ":skull: `code` |cell| <b>html</b>",
    "long" * 15_000,
)
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0041]")
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m")
SHAPE = (64, 64)


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> dict[str, Path]:
    """Files full of evil names, with evil names themselves: plain, nested in torch, and another one to compare with."""
    folder = tmp_path_factory.mktemp("evil")
    tensors = {name: weights(*SHAPE, seed=place) for place, name in enumerate(EVIL)}
    plain = folder / "a\x1b[2J\u202e[red]\n.safetensors"
    save_file(tensors, plain, metadata={name[:300]: name[:300] for name in EVIL})
    nested = folder / "b\x1b[2J.pth"
    values = {name: name for name in EVIL} | {"opaque": [EVIL[0]]}
    torch.save({"model": tensors, **values, "optimizer": {EVIL[0]: {EVIL[1]: torch.ones(3)}}}, nested)
    other = folder / "c\x1b[2J.safetensors"
    save_file({name + name[:4]: value for name, value in tensors.items()} | {"w": weights(4, 4)}, other)
    return {"plain": plain, "nested": nested, "other": other}


COMMANDS = {
    "inspect": ("inspect", "plain", "-v"),
    "inspect, nested": ("inspect", "nested", "-v"),
    "inspect, short": ("inspect", "nested"),
    "quantize": ("quantize", "nested", "-v", "--no-progress", "-f"),
    "diff": ("diff", "plain", "other", "-v"),
    "verify": ("verify", "plain"),
    "a key that is not there": ("inspect", "nested", "--key", "none"),
    "a pattern that matches nothing": ("quantize", "plain", "--only", "nothing\x1b[2J"),
}


def command(evil: dict[str, Path], folder: Path, words: tuple[str, ...]) -> list[str]:
    return [str(shutil.copy(evil[word], folder)) if word in evil else word for word in words]


@pytest.mark.parametrize("form", ["plain", "md", "json"])
@pytest.mark.parametrize("what", COMMANDS)
def test_what_a_pipe_gets_is_inert(what, form, evil, modelzip, tmp_path):
    run = modelzip(*command(evil, tmp_path, COMMANDS[what]), "--format", form)
    assert "Traceback" not in run.stderr
    assert "bug in modelzip" not in run.stderr
    for stream in (run.stdout, run.stderr):
        found = FORBIDDEN.search(stream)
        assert not found, f"{found[0]!r} in {stream[max(0, found.start() - 60) : found.end() + 20]!r}"


@pytest.mark.parametrize("what", COMMANDS)
def test_what_a_terminal_gets_is_inert(what, evil, environment, tmp_path):
    shown = in_a_terminal(command(evil, tmp_path, COMMANDS[what]), environment, tmp_path)
    found = FORBIDDEN.search(OWN_SEQUENCES.sub("", shown.replace("\r\n", "\n")))
    assert not found, f"{found[0]!r} in {shown[max(0, found.start() - 60) : found.end() + 20]!r}"
    assert "Traceback" not in shown


def in_a_terminal(arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    """Run the program on a pseudo-terminal and return all that it shows there."""
    ours, theirs = pty.openpty()
    terminal = environment | {"TERM": "xterm-256color", "COLUMNS": "110"}
    process = subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=terminal
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    process.wait()
    return shown.decode()


def test_markup_in_a_name_is_shown_as_it_is_written(evil, environment, tmp_path):
    shown = in_a_terminal(command(evil, tmp_path, ("inspect", "plain", "-v")), environment, tmp_path)
    shown = OWN_SEQUENCES.sub("", shown)
    assert "[red]markup[/red]" in shown
    assert "clear\\x1b[2J" in shown
    assert "bidi\\u202egnp" in shown


def test_json_holds_every_name_whole(evil, modelzip, tmp_path):
    run = modelzip(*command(evil, tmp_path, ("inspect", "plain")), "--json")
    assert {row["name"] for row in run.json["tensors"]} == {*EVIL}


def test_every_line_of_jsonl_is_a_value(evil, modelzip, tmp_path):
    run = modelzip(*command(evil, tmp_path, ("quantize", "nested", "plain")), "--format", "jsonl", "--no-progress")
    assert run.exit_code == 0
    assert all(json.loads(line) for line in run.stdout_bytes.split(b"\n")[:-1])


def test_a_lone_surrogate_in_a_name_is_refused_in_one_line(modelzip, tmp_path):
    path = torch_file(tmp_path / "a.pth", mapping({"w\ud800": tensor()}))
    for arguments in (("inspect", path), ("quantize", path), ("inspect", path, "--json")):
        run = modelzip(*arguments)
        assert run.exit_code == 1
        assert len(run.stderr.splitlines()) == 1
        assert "w\\ud800" in run.stderr


def test_a_lone_surrogate_beside_the_weights_is_shown_escaped(modelzip, tmp_path):
    path = torch_file(tmp_path / "a.pth", mapping({"model": mapping({"w": tensor()}), "note\ud800": text("\udc00")}))
    for form in ("plain", "json", "md"):
        run = modelzip("inspect", path, "--format", form)
        assert (run.exit_code, run.stderr) == (0, "")
        assert "ud800" in run.stdout


def test_a_file_name_that_is_not_utf8_works_and_is_shown_escaped(evil, modelzip, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"))
    save_file({"w": weights(*SHAPE)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(path)
    for arguments in (("inspect", path), ("quantize", path), ("inspect", path, "--json")):
        run = modelzip(*arguments)
        assert (run.exit_code, "Traceback" in run.stderr) == (0, False)
        assert "\\udcff" in run.stdout
