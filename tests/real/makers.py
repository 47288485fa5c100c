"""Files as they are found in the wild.

torch and safetensors write what they can still write; the oldest forms are put together from opcodes, and torch reads
them too, which a test checks. Each maker writes `path` and returns it, or the weights that are in it where nothing
else could tell.
"""

from __future__ import annotations

import importlib
import io
import json
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints import weights
from tests.hostile.makers import Member, call, integer, items, mapping, name, pickle_of, sequence, text, zip_of

Tensors = dict[str, torch.Tensor]
FALSE, NONE = b"\x89", b"N"


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in C order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# The legacy format: five pickles, then the storages


def legacy(path: Path, value: Any) -> Path:
    """What torch before version 1.6 wrote."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def zipped(path: Path, value: Any) -> Path:
    """What torch has written since."""
    torch.save(value, path)
    return path


WRITERS: dict[str, Callable[[Path, Any], Path]] = {"legacy": legacy, "zip": zipped}

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {
    "protocol_version": integer(1001),
    "little_endian": b"\x88",
    "type_sizes": mapping({"short": integer(2), "int": integer(4), "long": integer(4)}),
}


def assembled_legacy(root: bytes, storages: Mapping[str, tuple[int, bytes]], *, system: Any = None) -> bytes:
    """The legacy format around the opcodes `root`; `storages` are (elements, bytes) by key."""
    pickles = (
        integer(MAGIC),
        integer(1001),
        mapping(SYSTEM if system is None else system),
        root,
        items(*map(text, storages)),
    )
    held = (struct.pack("<q", count) + data for count, data in storages.values())
    return b"".join(map(pickle_of, pickles)) + b"".join(held)


def byte_string(value: str) -> bytes:
    """A string of Python 2: SHORT_BINSTRING."""
    return b"U" + bytes([len(value)]) + value.encode()


def held_storage(key: str, count: int, *more: bytes, kind: str = "torch.FloatStorage", place: str = "cpu") -> bytes:
    """A storage by its persistent id: five elements, or six with the view metadata of old files in `more`."""
    return sequence(text("storage"), name(kind), text(key), text(place), integer(count), *more) + b"Q"


def strides_of(shape: Iterable[int]) -> list[int]:
    """The strides of C order."""
    shape = list(shape)
    return [prod(shape[place + 1 :]) for place in range(len(shape))]


def old_tensor(held: bytes, shape: Iterable[int], *, offset: int = 0) -> bytes:
    """A call of `_rebuild_tensor` with its four arguments, as files of 2017 and early 2018 have it."""
    shape = list(shape)
    sizes, strides = (sequence(*map(integer, values)) for values in (shape, strides_of(shape)))
    return call("torch._utils._rebuild_tensor", held, integer(offset), sizes, strides)


OLDEST = {"legacy": (NONE,), "zip": ()}  # what follows the number of elements in a persistent id


def oldest(path: Path, form: str, *, python_2: bool = False, place: str = "cuda:0") -> Tensors:
    """A state dict of the oldest form: `_rebuild_tensor`, no `_metadata`, a plain dict; returns what is in it."""
    tensors = {"features.0.weight": weights(64, 3, 11, 11, seed=20), "features.0.bias": weights(64, seed=21)}
    keys = {key: str(93875477254704 + 16 * number) for number, key in enumerate(tensors)}
    if form == "zip":
        keys = {key: str(number) for number, key in enumerate(tensors)}
    pairs = []
    for key, tensor in tensors.items():
        held = held_storage(keys[key], tensor.numel(), *OLDEST[form], place=place)
        pairs.append((byte_string(key) if python_2 else text(key), old_tensor(held, tensor.shape)))
    data = {keys[key]: raw(tensor) for key, tensor in tensors.items()}
    if form == "zip":
        entries = {"data.pkl": pickle_of(mapping(pairs)), "version": b"3\n"}
        entries |= {f"data/{key}": storage for key, storage in data.items()}
        path.write_bytes(zip_of([Member(f"m/{entry}", content) for entry, content in entries.items()]))
    else:
        held = {keys[key]: (tensor.numel(), data[keys[key]]) for key, tensor in tensors.items()}
        path.write_bytes(assembled_legacy(mapping(pairs), held))
    return tensors


def legacy_views(path: Path) -> Tensors:
    """Storages that are views of another: view metadata (key, offset, size), as torch 0.1 to 0.3 wrote them."""
    base = weights(10, 8, seed=22).reshape(-1)
    whole = held_storage("7", 80, NONE)
    part = held_storage("7", 80, sequence(text("8"), integer(16), integer(24)))
    root = mapping({"whole": old_tensor(whole, (10, 8)), "part": old_tensor(part, (2, 8), offset=8)})
    path.write_bytes(assembled_legacy(root, {"7": (80, raw(base))}))
    return {"whole": base.view(10, 8), "part": base[24:40].view(2, 8)}


def tagged(
    path: Path, value: Any, writer: Callable[[Path, Any], Path], monkeypatch: Any, place: str = "cuda:0"
) -> Path:
    """A file whose storages say that they were on a GPU; only the tag in the pickle differs."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: place)
        return writer(path, value)


# Zip archives of all ages

AGES = {  # what stands beside data.pkl and the storages
    "1.6": {"version": b"3\n"},
    "1.8 of another root": {"version": b"3\n"},
    "2.1": {"version": b"3\n", "byteorder": b"little", ".data/serialization_id": b"0" * 40},
    "2.7": {
        "version": b"3\n",
        "byteorder": b"little",
        ".data/serialization_id": b"0" * 40,
        ".format_version": b"1",
        ".storage_alignment": b"64",
    },
    "of a torch to come": {"version": b"3\n", "byteorder": b"little", ".data/new": b"\0\1", "something_new": b"{}"},
}


def zip_of_age(path: Path, value: Any, entries: Mapping[str, bytes], root: str = "archive") -> Path:
    """A torch zip file with only `entries` beside its pickle and its storages, under a folder of any name."""
    stream = io.BytesIO()
    torch.save(value, stream)
    members = []
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            inner = info.filename.partition("/")[2]
            if inner == "data.pkl" or inner.startswith("data/"):
                members.append(Member(f"{root}/{inner}", archive.read(info)))
    path.write_bytes(zip_of([*members, *(Member(f"{root}/{entry}", data) for entry, data in entries.items())]))
    return path


# Whole modules

NET = '''
"""The source of somebody's model. Importing it leaves a file beside it."""
from pathlib import Path

import torch
from torch import nn

Path(__file__).with_name("imported").touch()


class Options:
    def __init__(self):
        self.width = 32


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(96)
        self.proj = nn.Linear(96, 96, bias=False)
        self.gate = None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.options = Options()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_parameter("nothing", None)
        self.register_buffer("window", torch.hann_window(32))
        self.register_buffer("mask", torch.ones(16, 16), persistent=False)
        self.register_buffer("absent", None)
        self.cache = torch.zeros(5)  # a plain attribute, not in the state dict
        self.embed = nn.Embedding(80, 96)
        self.lstm = nn.LSTM(96, 48, num_layers=2, bidirectional=True)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.prompts = nn.ParameterList([nn.Parameter(torch.randn(4, 96)), nn.Parameter(torch.randn(2, 96))])
        self.conv = nn.Conv2d(3, 64, 11)
        self.head = nn.Linear(96, 80)
        self.head.weight = self.embed.weight
        self.empty = nn.Sequential(nn.ReLU(), nn.Dropout())
        self.register_buffer("steps", torch.tensor(3_876_387))
'''


def net_module(folder: Path) -> ModuleType:
    """Write the source of a model into `folder` and import it; `forget` undoes that."""
    (folder / "somebodys_net.py").write_text(NET)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        sys.modules.pop("somebodys_net", None)
        return importlib.import_module("somebodys_net")
    finally:
        sys.path.remove(str(folder))


def forget(folder: Path) -> Path:
    """Take the module of `net_module` out of memory and return the mark that a new import would leave."""
    del sys.modules["somebodys_net"]
    mark = folder / "imported"
    mark.unlink()
    return mark


def whole_module(folder: Path, save: Callable[[Any], object], *, parallel: bool = False) -> Tensors:
    """Have `save` write a whole module; returns its state dict. Its class can be imported by who adds `folder`."""
    net = net_module(folder)
    torch.manual_seed(0)
    model = net.Net()
    if parallel:
        model = torch.nn.DataParallel(model)
    save(model)
    expected = OrderedDict((key, value.detach().clone()) for key, value in model.state_dict().items())
    forget(folder)
    return expected


# Hugging Face directories

SIDE_FILES: dict[str, bytes] = {
    "config.json": b'{\r\n  "model_type": "bert",  "tie_word_embeddings": true}\n',
    "tokenizer.json": '{"version": "1.0", "é": "漢字"}'.encode(),
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b'{"pad_token": "[PAD]"}\n',
    "generation_config.json": b"{ }",
    "vocab.txt": b"[PAD]\r\n[UNK]\n\xe2\x96\x81the",
    "merges.txt": b"#version: 0.2\nt h\n",
    "sentencepiece.bpe.model": bytes(range(256)),
    "modules.json": b'[{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}]',
    "sentence_bert_config.json": b'{"max_seq_length": 256}',
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "README.md": b"# A model\n",
}
STEMS = {".safetensors": "model", ".bin": "pytorch_model"}


def write_shard(path: Path, tensors: Tensors) -> None:
    """A shard as transformers writes it, by its suffix."""
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(OrderedDict(tensors), path)


def index_name(suffix: str) -> str:
    """What the index of a sharded directory is called."""
    return f"{STEMS[suffix]}{suffix}.index.json"


def shard_names(count: int, suffix: str) -> list[str]:
    """What transformers calls the files of a model."""
    stem = STEMS[suffix]
    if count == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def modelzip_names(count: int, suffix: str) -> list[str]:
    """What the shards of a native directory are called."""
    return [name.removesuffix(suffix) + ".modelzip.safetensors" for name in shard_names(count, suffix)]


def hugging_face(
    folder: Path,
    tensors: Tensors,
    *,
    shards: int = 1,
    suffix: str = ".safetensors",
    side_files: Mapping[str, bytes] = SIDE_FILES,
) -> Path:
    """A model directory: one file, or `shards` of them with an index."""
    folder.mkdir(parents=True)
    for relative, data in side_files.items():
        (folder / relative).parent.mkdir(exist_ok=True)
        (folder / relative).write_bytes(data)
    names, files = [*tensors], shard_names(shards, suffix)
    share = -(-len(names) // shards)
    weight_map = {key: files[place // share] for place, key in enumerate(names)}
    for file in files:
        write_shard(folder / file, {key: tensors[key] for key in names if weight_map[key] == file})
    if shards > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / index_name(suffix)).write_text(json.dumps(index, indent=2) + "\n")
    return folder


def model_tensors() -> Tensors:
    """A language model with tied embeddings: no `lm_head.weight` is stored."""
    tensors = {"model.embed_tokens.weight": weights(130, 64, seed=50)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = weights(96, 64, seed=51 + layer)
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = weights(64, 96, seed=54 + layer)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(64)
    tensors["model.norm.weight"] = torch.ones(64)
    return tensors


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object], suffix: str = ".safetensors") -> None:
    """Have `edit` change the index of a sharded directory in place."""
    path = folder / index_name(suffix)
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


def hub_cache(folder: Path, model: Path) -> Path:
    """Move a model directory into the layout of the hub's cache, where a snapshot is links to blobs."""
    blobs, snapshot = folder / "models--org--name" / "blobs", folder / "models--org--name" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(link.relative_to(snapshot).parts) + 1)
        path.rename(blobs / f"{number:064x}")
        link.symlink_to(f"{up}blobs/{number:064x}")
    return snapshot


# Exported programs


class Exported(torch.nn.Module):
    """Something that torch.export takes: a tie, buffers of both kinds, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(96, 96, bias=False)
        self.head = torch.nn.Linear(96, 96)
        self.head.weight = self.embed.weight
        self.wide = torch.nn.Linear(96, 130)
        self.norm = torch.nn.BatchNorm1d(130)
        self.register_buffer("steps", torch.tensor(3_876_387))
        self.register_buffer("mask", torch.ones(96), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.wide(self.head(self.embed(x) * self.mask))) + self.steps


def exported(path: Path) -> Tensors:
    """A program by `torch.export.save`; returns the state dict of its model."""
    torch.manual_seed(0)
    model = Exported().eval()
    torch.export.save(torch.export.export(model, (torch.ones(2, 96),)), path)
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def edit_zip(path: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """Rewrite an archive with what `edit` makes of each entry, given its name and its bytes."""
    with zipfile.ZipFile(path) as archive:
        members = [Member(info.filename, edit(info.filename, archive.read(info))) for info in archive.infolist()]
    path.write_bytes(zip_of(members))
    return path


# Files of other programs


def ctranslate2(specification: str = "TransformerSpec") -> bytes:
    """The `model.bin` of CTranslate2: a small number, then the class name as text with its length before it."""
    spec = specification.encode() + b"\0"
    variable = b"decoder/scale_embeddings\0"
    start = struct.pack("<IH", 6, len(spec)) + spec + struct.pack("<II", 7, 1)
    return start + struct.pack("<H", len(variable)) + variable + struct.pack("<BBIIB", 0, 4, 1, 1, 1)


def onnx(producer: str) -> bytes:
    """The start of an ONNX model: a protobuf of version, producer and graph."""
    graph = b"\x0a\x0a\x0a\x05input\x12\x01y\x12\x0amain_graph" + b"\x2a\x10" + bytes(16)
    fields = b"\x08\x08\x12" + bytes([len(producer)]) + producer.encode() + b"\x1a\x052.1.0"
    return fields + b":" + bytes([len(graph)]) + graph + b"B\x04\x0a\x00\x10\x11"


def torch_0_1() -> bytes:
    """A tar with the entries that torch 0.1 wrote."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for entry in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle_of(mapping({}))
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def other_tar() -> bytes:
    """A checkpoint in an ordinary tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    return stream.getvalue()
