"""A student as the bytes of a file: an exported graph, or weights with a note on what runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from modelzip_cli.running.export import save_export
from modelzip_cli.running.inputs import Batch
from modelzip_cli.running.model import NOTE, Model
from modelzip_cli.running.students import example_of


def student_bytes(student: Model, suffix: str, recipe: Mapping[str, Any], batch: Batch) -> bytes:
    """The file of a student: `.pt2` holds the network too; `.safetensors` and torch files hold `state_dict` and recipe.

    `batch`: an example of its input. Raises UnsupportedCheckpoint where torch.export cannot take the network.
    """
    if suffix == ".pt2":
        return save_export(student.module, example_of(batch, student.wanted), recipe=recipe, wanted=student.wanted)
    state_dict = {name: tensor.detach().clone() for name, tensor in student.module.state_dict().items()}
    note = json.dumps(dict(recipe))
    if suffix == ".safetensors":
        return to_safetensors(state_dict, {"format": "pt", NOTE: note})
    torch.save({"state_dict": state_dict, NOTE: note}, buffer := BytesIO())
    return buffer.getvalue()
