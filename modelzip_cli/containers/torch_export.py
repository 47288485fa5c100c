"""The weights of a torch.export archive (`.pt2`): a zip with raw storages and a JSON list of what they are.

Source: PyTorch 2.13, torch/export/pt2_archive/_package.py and torch/_export/serde/schema.py (`PayloadConfig`,
`TensorMeta`, `ScalarType`). The program, its sample inputs and its constants are not touched.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from modelzip_cli.containers.source_file import SourceFile
from modelzip_cli.containers.strict_json import NotStrict, parse
from modelzip_cli.containers.torch_file import Archive
from modelzip_cli.containers.tree import StorageRef, TensorRef
from modelzip_cli.containers.zip_file import Entry, check_crc
from modelzip_cli.errors import BrokenCheckpoint, UnsafeInput, UnsupportedCheckpoint, inert
from modelzip_cli.tensors import DTYPES, DType

MOST_CONFIG = 100_000_000
MOST_RANK = 64
FOLDER, CONFIG = "/data/weights/", "_weights_config.json"
SCALAR_TYPES: dict[int, DType] = {
    number: DTYPES[name]
    for number, name in {
        1: "u8",
        2: "i8",
        3: "i16",
        4: "i32",
        5: "i64",
        6: "f16",
        7: "f32",
        8: "f64",
        9: "c32",
        10: "c64",
        11: "c128",
        12: "bool",
        13: "bf16",
        28: "u16",
        29: "f8_e4m3",
        30: "f8_e5m2",
        31: "f8_e4m3fnuz",
        32: "f8_e5m2fnuz",
        33: "f8_e8m0",
        34: "u32",
        35: "u64",
    }.items()
}


def is_export(entries: Mapping[str, Entry]) -> bool:
    """Say whether a zip archive with these entries is one of torch.export."""
    return any(name.count("/") == 1 and name.endswith("/archive_format") for name in entries)


def read_export(file: SourceFile, entries: Mapping[str, Entry]) -> Archive:
    """Find the weights of the one model in the archive, under the names of its state dict."""
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in entries):
        raise UnsupportedCheckpoint(f"{file.label}: both a torch.export archive (.pt2) and a torch file")
    configs = [name for name in entries if FOLDER in name and name.endswith(CONFIG)]
    if len(configs) != 1:
        raise UnsupportedCheckpoint(
            f"{file.label}: a torch.export archive (.pt2) with the weights of {len(configs)} models"
        )
    folder = configs[0][: configs[0].index(FOLDER) + len(FOLDER)]
    entry = entries[configs[0]]
    if entry.size > MOST_CONFIG:
        raise BrokenCheckpoint(f"{file.label}: the list of its weights is larger than 100 MB")
    text = file.read(entry.offset, entry.size)
    check_crc(entry, text, f"{file.label}: {inert(configs[0])}")
    storages = {name.removeprefix(folder): entry for name, entry in entries.items() if name.startswith(folder)}
    try:
        listed = parse(text)["config"]
        for name, payload in listed.items():
            if payload["use_pickle"] is not False:
                raise UnsafeInput(
                    f"{file.label}: tensor {inert(name, longest=200)} is stored as a pickle, which only code from the "
                    "file could rebuild; nothing was run; save model.state_dict() instead"
                )
        weights = OrderedDict((name, payload_tensor(payload, storages)) for name, payload in listed.items())
    except NotStrict as error:
        raise BrokenCheckpoint(f"{file.label}: the list of its weights: {inert(str(error), longest=200)}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"malformed: {inert(str(error), longest=200)}"
        raise BrokenCheckpoint(f"{file.label}: the list of its weights is {what}") from None
    return Archive(weights, storages, hashlib.sha256(text).hexdigest(), container="pt2")


def payload_tensor(payload: Mapping[str, Any], storages: Mapping[str, Entry]) -> TensorRef:
    """The view of a storage that a `PayloadMeta` describes. Raises KeyError, TypeError or ValueError."""
    meta, key = payload["tensor_meta"], payload["path_name"]
    if type(meta["dtype"]) is not int:
        raise ValueError("a dtype is not a whole number")
    dtype, entry = SCALAR_TYPES[meta["dtype"]], storages[key]
    if len(meta["sizes"]) > MOST_RANK or len(meta["strides"]) > MOST_RANK:
        raise ValueError(f"a tensor of more than {MOST_RANK} dimensions")
    shape, strides = (tuple(_whole(size) for size in meta[name]) for name in ("sizes", "strides"))
    storage = StorageRef(key, None, entry.size)
    return TensorRef(storage, dtype, _whole(meta["storage_offset"]), shape, strides)


def _whole(value: Mapping[str, Any]) -> int:
    number = value["as_int"]
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError("a size is not a whole number in range")
    return number
