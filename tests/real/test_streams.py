"""Streams: `-` is a safetensors file on standard input or output."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import save_file

from modelzip_cli import load_file
from tests import checkpoints
from tests.checkpoints import same, weights
from tests.real.checks import STATE, assert_close, files_in, load


@pytest.mark.parametrize(
    "line",
    [
        "modelzip quantize - -o out.safetensors < m.safetensors",
        "cat m.safetensors | modelzip quantize - -o out.safetensors",
        "cat m.safetensors | modelzip quantize - > out.safetensors",
        "modelzip quantize - -o - < m.safetensors > out.safetensors",
        "modelzip quantize m.safetensors -o - > out.safetensors",
        "modelzip quantize m.safetensors -o - | cat > out.safetensors",
    ],
)
def test_a_stream_is_read_and_written(line, shell, tmp_path):
    path = checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell(line)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    assert_close({key: found[key] for key in sorted(found)}, dict(sorted(load(path).items())))
    assert files_in(tmp_path) == ["m.safetensors", "out.safetensors"]


def test_streams_of_two_commands_fit_together(shell, tmp_path):
    path = checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell("modelzip quantize m.safetensors -o - | modelzip restore - -o r.safetensors")
    assert done.returncode == 0, done.stderr
    assert set(load(tmp_path / "r.safetensors")) == set(load(path))
    assert files_in(tmp_path) == ["m.safetensors", "r.safetensors"]
    again = shell("modelzip quantize m.safetensors -o - | modelzip restore - | cat > s.safetensors")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "r.safetensors").read_bytes()


def test_nothing_but_the_file_is_on_the_stream(shell, tmp_path):
    path = checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell("modelzip quantize m.safetensors -o - -s fp16 --layout dense")
    assert done.returncode == 0, done.stderr
    found = load_safetensors_bytes(done.stdout)
    assert same(found["embed.weight"], load(path)["embed.weight"].half())
    shell("modelzip quantize m.safetensors -o f.safetensors -s fp16 --layout dense")
    assert done.stdout == (tmp_path / "f.safetensors").read_bytes()


def test_inspect_takes_a_stream(shell, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell("modelzip inspect - --json < m.safetensors")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"]["tensors"] == len(STATE)


@pytest.mark.parametrize(
    "line",
    [
        "head -c 5000 m.safetensors | modelzip quantize -",
        "head -c 5000 m.safetensors | modelzip quantize - -o out.safetensors",
        "modelzip quantize - < /dev/null",
        "echo hello | modelzip quantize - -o out.safetensors",
        "cat m.safetensors m.safetensors | modelzip quantize -",
    ],
)
def test_a_broken_stream_is_one_line_and_no_output(line, shell, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell(line)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().count("\n") == 1
    assert files_in(tmp_path) == ["m.safetensors"]


def test_an_error_leaves_the_stream_empty(shell, tmp_path):
    save_file({"a": weights(64, 64), "w": torch.full((64, 64), float("nan"))}, tmp_path / "m.safetensors")
    done = shell("modelzip quantize m.safetensors -o -")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"NaN" in done.stderr
    done = shell("modelzip quantize m.safetensors --only a -o - --fail-under sqnr=90")
    assert (done.returncode, done.stdout) == (4, b"")
    assert files_in(tmp_path) == ["m.safetensors"]


def test_a_stream_has_room_for_one_output_only(shell, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    assert shell("modelzip quantize - m.safetensors -o - < m.safetensors").returncode == 2
    assert files_in(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("command", ["quantize m.safetensors -o -", "inspect m.safetensors --json"])
def test_a_reader_of_the_stream_that_goes_away_is_no_error(command, shell, tmp_path):
    save_file(
        {"w": weights(512, 512), **{f"w{n}": torch.ones(n % 50) for n in range(3000)}}, tmp_path / "m.safetensors"
    )
    done = shell(f"set +o pipefail; modelzip {command} | head -c 100 > start; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.decode().strip() in ("0", "141")
    assert done.stderr == b""
    assert files_in(tmp_path) == ["m.safetensors", "start"]


def test_a_full_disk_behind_the_stream_is_an_error(shell, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "m.safetensors")
    done = shell("modelzip quantize m.safetensors -o - > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1


def test_a_file_called_dash_is_reached_by_its_path_and_is_no_stream(run, tmp_path):
    checkpoints.plain_safetensors(tmp_path / "-")
    assert run("inspect", tmp_path / "-", "--json").json["source"]["tensors"] == len(STATE)
