"""Exported models in half precision: data are converted to what they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.evaluate import evaluate, prepared
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.narrow import example_input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_data_have_the_dtype_of_the_graph(dtype, tmp_path):
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval().to(dtype)
    axes = ({0: torch.export.Dim("batch", max=4096)},)
    torch.export.save(
        torch.export.export(module, (torch.randn(2, 6, dtype=dtype),), dynamic_shapes=axes), tmp_path / "m.pt2"
    )
    x, y = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32), np.arange(20) % 3
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model = open_model(tmp_path / "m.pt2", Network())
    examples = open_data(str(tmp_path / "data.npz"), model.wanted, DataOptions())
    rows = np.arange(20)
    assert examples.batch(rows).inputs[0].dtype == dtype
    assert example_input(model.wanted, "m.pt2")[0].dtype == dtype
    assert (examples.label, len(examples), examples.labelled) == (str(tmp_path / "data.npz"), 20, True)
    found = evaluate(prepared(model, examples, rows), examples, rows, latency=False)
    with torch.no_grad():
        right = module(torch.from_numpy(x).to(dtype)).argmax(1) == torch.from_numpy(y)
    assert found.accuracy == pytest.approx(float(right.double().mean()))
