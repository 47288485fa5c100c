"""Every limit bites: with its constant set low, a file that is fine otherwise is refused."""

from __future__ import annotations

import pytest

from modelzip_cli.errors import ModelzipError
from modelzip_cli.recipe import Recipe
from modelzip_cli.single import Settings, compress_file, restore_file
from modelzip_cli.source import open_source
from tests.hostile.makers import (
    call,
    entry,
    integer,
    items,
    mapping,
    read_all,
    safetensors_of,
    storage,
    tensor,
    torch_file,
)

LOW = {
    "containers.safetensors_file.MOST_HEADER": 60,
    "containers.safetensors_file.MOST_TENSORS": 1,
    "containers.safetensors_file.MOST_RANK": 1,
    "containers.zip_file.MOST_ENTRIES": 3,
    "containers.zip_file.MOST_DIRECTORY": 100,
    "containers.torch_zip.MOST_PICKLE": 100,
    "containers.torch_file.MOST_REPEATED": (0, 20),
    "containers.pickle_reader.MOST_OPCODES": 20,
    "containers.nesting.MOST_VALUES": 8,
    "containers.nesting.MOST_NESTING": 3,
}


@pytest.mark.parametrize("limit", LOW)
def test_a_file_over_a_limit_is_refused(limit, tmp_path, monkeypatch):
    if "safetensors" in limit:
        path = tmp_path / "fine.safetensors"
        path.write_bytes(safetensors_of({"a": entry([1, 1], 0, 4), "b": entry([1], 4, 8)}, bytes(8)))
    else:
        nested = mapping({"b": items(*(integer(n) for n in range(4)), mapping({"c": items(items())}))})
        path = torch_file(tmp_path / "fine.pth", mapping({"w": tensor((2, 4), (0, 1), held=storage()), "a": nested}))
    read_all(path)
    monkeypatch.setattr(f"modelzip_cli.{limit}", LOW[limit])
    with pytest.raises(ModelzipError):
        read_all(path)


def test_a_manifest_nested_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = torch_file(tmp_path / "deep.pth", mapping({"w": tensor(), "a": items(items(items(items())))}))
    output = tmp_path / "deep.safetensors"
    compress_file(path, output, Recipe(), Settings(), command="quantize")
    read_all(output)
    monkeypatch.setattr("modelzip_cli.containers.tree.LIMIT_DEPTH", 2)
    with pytest.raises(ModelzipError):
        open_source(output)


def test_a_file_that_would_restore_to_a_flood_needs_a_word_from_the_user(honest, tmp_path, monkeypatch):
    output = tmp_path / "restored.pth"
    monkeypatch.setattr("modelzip_cli.plan.FOREVER", (0, 100))
    with pytest.raises(ModelzipError, match="--max-output-size"):
        restore_file(honest["native-safetensors"], output, Settings(), dtype=None, most_bytes=None)
    assert not output.exists()
    restore_file(honest["native-safetensors"], output, Settings(), dtype=None, most_bytes=1 << 20)
    assert output.exists()


def test_a_list_is_not_made_of_a_number(tmp_path):
    for kind in ("list", "tuple", "set", "frozenset", "bytearray", "bytes", "str"):
        value = call(f"builtins.{kind}", integer(2**40))
        try:
            read_all(torch_file(tmp_path / "a.pth", mapping({"w": tensor(), "a": value})))
        except ModelzipError:
            continue
        assert kind in ("bytes", "str")  # classes that we do not construct: left out
