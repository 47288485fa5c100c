"""A torch.export archive written anew, in memory: of its program, weights and constants, what `export_schema` keeps.

Source: PyTorch 2.13, torch/export/pt2_archive/_package.py and torch/csrc/export/pt2_archive_constants.h.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch._export.serde.schema import SCHEMA_VERSION

from modelzip_cli.containers.memory_file import MemoryFile
from modelzip_cli.containers.pickle_calls import CONSTRUCTORS, STORAGES, TORCH_DTYPES, BadPickle
from modelzip_cli.containers.pickle_reader import read_one_pickle
from modelzip_cli.containers.source_file import Readable
from modelzip_cli.containers.strict_json import NotStrict, dumps, parse
from modelzip_cli.containers.torch_export import is_export, payload_tensor
from modelzip_cli.containers.torch_file import check_geometry, check_repetition, ties_of
from modelzip_cli.containers.tree import CALLS, TensorRef
from modelzip_cli.containers.zip_file import Entry, ZipWriter, check_crc, read_directory
from modelzip_cli.errors import BrokenCheckpoint, ModelzipError, UnsupportedCheckpoint, inert
from modelzip_cli.running.export_program import one_tensor_out, tensors_in
from modelzip_cli.running.export_schema import PROGRAM, Rule, malformed, payloads
from modelzip_cli.running.export_text import code

MOST_JSON = 256 << 20  # bytes; the program of a network of 100,000 nodes has 100 MB
PIECE = 16 << 20  # bytes of weights that are copied at a time
ROOT, MODEL = "archive/", "model"
RECIPE = "extra/modelzip"
IN_SAMPLES = {*CONSTRUCTORS, *STORAGES, *TORCH_DTYPES, *CALLS, "torch._export.serde.serialize._reconstruct_fake_tensor"}
SECTIONS = {"weights": payloads("weights", "weight_"), "constants": payloads("constants", "tensor_")}


@dataclass(frozen=True)
class Cleaned:
    """`archive`: what torch may load. `ties`: of parameters that are one, each later name with the first.

    `recipe`: what modelzip wrote beside the model, JSON, or None.
    """

    archive: MemoryFile
    ties: Mapping[str, str]
    recipe: dict[str, Any] | None


@dataclass(frozen=True)
class _Section:
    """The tensors of `data/weights/` or `data/constants/`: their list, and the entries that it names, by name."""

    listed: dict[str, Any]
    tensors: dict[str, TensorRef]
    entries: dict[str, Entry]


def cleaned(file: Readable) -> Cleaned:
    """Read the archive `file` without running anything from it, and write what is harmless of it into a new one.

    Raises UnsafeInput for code on any of the ways that `running/export.py` lists, BrokenCheckpoint for damage,
    UnsupportedCheckpoint for what modelzip does not run. Peak memory: the weights, once.
    """
    entries = _entries(file)
    try:
        name = _model_name(entries)
        _check_sample_inputs(file, entries.get(f"data/sample_inputs/{name}.pt"))
        program = _program(_json(file, entries, f"models/{name}.json"))
        sections = {section: _section(file, entries, section, name) for section in SECTIONS}
        recipe = _recipe(file, entries)
    except ModelzipError as error:
        raise _named(error, file.label) from None
    check_repetition(file, [tensor for section in sections.values() for tensor in section.tensors.values()])
    archive = _written(file, program, sections, recipe)
    return Cleaned(archive, _ties(sections["weights"]), recipe)


def _written(
    file: Readable, program: dict[str, Any], sections: Mapping[str, _Section], recipe: dict[str, Any] | None
) -> MemoryFile:
    """The new archive, to be read from its start. The empty sample inputs are not unpickled."""
    archive = MemoryFile(file.label)
    writer = ZipWriter(archive)
    _add(writer, "archive_format", b"pt2")
    _add(writer, "archive_version", b"0")
    _add(writer, "byteorder", b"little")
    _add(writer, ".data/version", b"6\n")
    _add(writer, f"models/{MODEL}.json", dumps(program).encode())
    for section, found in sections.items():
        _add(writer, f"data/{section}/{MODEL}_{section}_config.json", dumps(found.listed).encode())
        for key, entry in found.entries.items():
            _copy(file, entry, writer, f"data/{section}/{key}")
    _add(writer, f"data/sample_inputs/{MODEL}.pt", b"")
    if recipe is not None:
        _add(writer, RECIPE, dumps(recipe).encode())
    writer.finish()
    archive.buffer.seek(0)
    return archive


def _named(error: ModelzipError, label: str) -> ModelzipError:
    """The error with the name of the file in front, where it is not there yet."""
    message = str(error)
    return error if message.startswith(label) else type(error)(f"{label}: {message}")


def _entries(file: Readable) -> dict[str, Entry]:
    """The entries of the archive without its outermost folder. Raises UnsupportedCheckpoint for other archives."""
    found = read_directory(file)
    if not is_export(found):
        raise UnsupportedCheckpoint(
            f"{file.label}: not a torch.export archive; torch 2.9 and newer write them with torch.export.save"
        )
    roots = [name.partition("/")[0] for name in found if name.count("/") == 1 and name.endswith("/archive_format")]
    if len(roots) != 1:
        raise BrokenCheckpoint(f"{file.label}: {len(roots)} torch.export archives in one")
    root = f"{roots[0]}/"
    entries = {name.removeprefix(root): entry for name, entry in found.items() if name.startswith(root)}
    for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        entry = entries.get(name)
        if entry and (entry.size != len(expected) or file.read(entry.offset, entry.size) != expected):
            what = "another byte order" if name == "byteorder" else "a format newer than modelzip knows"
            raise UnsupportedCheckpoint(f"{file.label}: a torch.export archive in {what} ({name})")
    return entries


def _model_name(entries: Mapping[str, Entry]) -> str:
    """What the one program in the archive is called; also refuses archives with code beside it."""
    compiled = [name for name in entries if name.startswith("data/aotinductor/")]
    if compiled:
        raise code(compiled[0], "compiled code")
    names = [name.removeprefix("models/") for name in entries if name.startswith("models/")]
    if len(names) != 1 or not names[0].endswith(".json"):
        raise UnsupportedCheckpoint(f"a torch.export archive with {len(names)} programs, not one")
    name = names[0].removesuffix(".json")
    for section in SECTIONS:
        if f"data/{section}/{name}.pt" in entries:
            raise UnsupportedCheckpoint(
                f"its {section} are a pickle, as torch 2.8 wrote them: export the model again with a newer torch"
            )
    return name


def _content(file: Readable, entry: Entry) -> bytes:
    data = file.read(entry.offset, entry.size)
    check_crc(entry, data, f"{file.label}: {inert(entry.name, longest=200)}")
    return data


def _json(file: Readable, entries: Mapping[str, Entry], name: str) -> Any:
    entry = entries.get(name)
    if entry is None:
        raise BrokenCheckpoint(f"{inert(name, longest=200)} is missing")
    if entry.size > MOST_JSON:
        raise UnsupportedCheckpoint(f"{inert(name, longest=200)} has {entry.size:,} bytes")
    try:
        return parse(_content(file, entry))
    except NotStrict as error:
        raise BrokenCheckpoint(f"{inert(name, longest=200)}: {inert(str(error), longest=200)}") from None


def _check_sample_inputs(file: Readable, entry: Entry | None) -> None:
    """Refuse a file whose sample inputs name what tensors do not need. They are not used, whatever they are."""
    data = _content(file, entry) if entry else b""
    if not data:
        return
    try:
        unknown = sorted(_names_in(data) - IN_SAMPLES)
    except (BadPickle, ModelzipError):
        raise code("sample_inputs: a pickle of a kind that torch does not write") from None
    if unknown:
        raise code(f"sample_inputs: pickle, {unknown[0]}")


def _names_in(data: bytes) -> set[str]:
    """All that the pickles in a file of `torch.save` name; what is no zip archive is a pickle itself."""
    if not data.startswith(b"PK"):
        return {*read_one_pickle(data).names}
    inner = MemoryFile("sample inputs", data)
    pickles = [entry for name, entry in read_directory(inner).items() if name.endswith(".pkl")]
    return {name for entry in pickles for name in read_one_pickle(inner.read(entry.offset, entry.size)).names}


def _program(value: Any) -> dict[str, Any]:
    """The program that torch will see: one that takes tensors by position and returns a tensor."""
    try:
        version = value["schema_version"]["major"], value["schema_version"]["minor"]
        newer, older = version > SCHEMA_VERSION, version[0] < SCHEMA_VERSION[0]
    except (TypeError, KeyError):
        raise malformed("no schema version") from None
    written = inert(f"{version[0]}.{version[1]}", longest=20)
    if newer:
        raise UnsupportedCheckpoint(f"written by a newer torch.export schema ({written}); update torch")
    if older:
        raise UnsupportedCheckpoint(f"written by an older torch.export schema ({written}); export the model again")
    try:
        return one_tensor_out(tensors_in(PROGRAM(value) | {"guards_code": []}))
    except RecursionError:
        raise malformed("nested too deeply") from None


def _section(file: Readable, entries: Mapping[str, Entry], section: str, model: str) -> _Section:
    folder = f"data/{section}/"
    rule: Rule = SECTIONS[section]
    listed = rule(_json(file, entries, f"{folder}{model}_{section}_config.json"))
    storages = {name.removeprefix(folder): entry for name, entry in entries.items() if name.startswith(folder)}
    tensors = {}
    for name, payload in listed["config"].items():
        try:
            tensor = payload_tensor(payload, storages)
        except (KeyError, TypeError, ValueError):
            raise malformed(f"tensor {name} is described wrongly, or its bytes are missing") from None
        check_geometry(file.label, name, tensor, storages)
        tensors[name] = tensor
    used = {tensor.storage.key: storages[tensor.storage.key] for tensor in tensors.values()}
    return _Section(listed, tensors, used)


def _recipe(file: Readable, entries: Mapping[str, Entry]) -> dict[str, Any] | None:
    if RECIPE not in entries:
        return None
    recipe = _json(file, entries, RECIPE)
    if not isinstance(recipe, dict):
        raise BrokenCheckpoint(f"{RECIPE} is not what modelzip writes")
    return recipe


def _ties(weights: _Section) -> dict[str, str]:
    """Torch writes the bytes of a tied parameter once and lists them under each name; equal values say nothing."""
    parameters = {name for name, payload in weights.listed["config"].items() if payload["is_param"]}
    return ties_of({name: tensor for name, tensor in weights.tensors.items() if name in parameters})


def _add(writer: ZipWriter, name: str, data: bytes) -> None:
    writer.add(ROOT + name, data, zlib.crc32(data))


def _copy(file: Readable, entry: Entry, writer: ZipWriter, name: str) -> None:
    header, offset = writer.reserve(ROOT + name, entry.size)
    crc = 0
    for begin in range(0, entry.size, PIECE):
        piece = file.read(entry.offset + begin, min(PIECE, entry.size - begin))
        crc = zlib.crc32(piece, crc)
        writer.output.write(offset + begin, piece)
    if entry.crc and crc != entry.crc:
        raise BrokenCheckpoint(f"{file.label}: {inert(entry.name)}: its checksum does not match: the file is damaged")
    writer.finish_entry(ROOT + name, header, entry.size, crc)
