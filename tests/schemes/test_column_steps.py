"""Steps of columns: which they are, that they are what a scaled weight would have, and that a file keeps them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modelzip_cli import load_file
from modelzip_cli.errors import UsageError
from modelzip_cli.recipe import Goal, Recipe
from modelzip_cli.schemes.ecq import COLUMN_STEPS, SAME_STEP, Ecq, column_steps
from modelzip_cli.single import Aid, Settings, compress_file
from tests.checkpoints import weights
from tests.entropy import first_tables
from tests.measured import hessian_of, inputs_of, output_error, statistics_file
from tests.strategies import fit
from tests.test_format_page import assert_same, decoder, manifest_of

__all__ = ["decoder"]  # a fixture

SHAPES = {"tall": (300, 80), "wide": (64, 200)}  # paths down the rows, and along them
DTYPES = ("float32", "bfloat16", "float16")


def moments(columns: int) -> np.ndarray:
    """Mean squares of inputs [1, columns] of very different scale."""
    return hessian_of(inputs_of(columns) * 2.0 ** np.linspace(-3, 3, columns)).diagonal()[None].copy()


def test_factors_are_eighths_of_an_octave():
    assert COLUMN_STEPS[SAME_STEP] == 1
    assert np.allclose(COLUMN_STEPS, 2.0 ** ((np.arange(64) - 32) / 8), rtol=1e-7)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=90))
def test_an_error_does_as_much_in_every_column(squares):
    steps = COLUMN_STEPS[column_steps(np.float32([squares]))[0]]
    done = np.log2(steps * np.sqrt(squares))
    assert np.ptp(done) <= 1 / 8 + 1e-4
    assert abs(np.log2(steps).mean()) <= 1 / 16 + 1e-4


@pytest.mark.parametrize("squares", [[0.0, 0.0], [0.0]])
def test_inputs_that_were_never_there_leave_the_step_of_the_tensor(squares):
    assert (column_steps(np.float32([squares])) == SAME_STEP).all()


def test_an_input_that_was_never_there_is_held_in():
    codes = column_steps(np.float32([[1.0, 1.0, 1.0, 0.0]]))[0]
    assert codes[:3].max() < codes[3] <= 63


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_codes_are_those_of_the_weights_over_the_factors(states, shape):
    weight = weights(*shape).numpy()
    scheme, codes = Ecq(0.3, states, columns=True), column_steps(moments(shape[1]))
    plain, factors = replace(scheme, columns=False), COLUMN_STEPS[codes]
    scaled = np.divide(weight, factors, dtype=np.float32)
    params = fit(plain, scaled) | {"column_step": codes}
    rows = scheme.fit_rows(weight, params)
    assert (rows["row_class"] == params["row_class"]).all()
    prices = scheme.prices(first_tables(scheme).rates)
    found = scheme.encode(weight, params, prices)
    assert (found == plain.encode(scaled, params, prices)).all()
    assert scheme.decode(found, params).tobytes() == (plain.decode(found, params) * factors).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_keeps_them_and_the_outputs_are_nearer(dtype, tmp_path, decoder):
    inputs = {name: inputs_of(shape[1]) * 2.0 ** np.linspace(-3, 3, shape[1]) for name, shape in SHAPES.items()}
    tensors = {name: weights(*shape, seed=2).to(getattr(torch, dtype)) for name, shape in SHAPES.items()}
    source = tmp_path / "m.safetensors"
    save_file(tensors, source)
    arrays = {f"{name}:second_moment": hessian_of(x).diagonal()[None] for name, x in inputs.items()}
    recipe, found = Recipe(scheme="ecq", goal=Goal("bpw", 3.0)), {}
    with closing(statistics_file(tmp_path / "s", arrays)) as statistics:
        for label, jobs, aid in (("plain", 1, Aid()), ("steps", 1, Aid(statistics)), ("again", 3, Aid(statistics))):
            output = tmp_path / f"{label}.safetensors"
            report = compress_file(source, output, recipe, Settings(jobs), command="compress", aid=aid)
            assert report.totals["bits_per_weight"] <= 3.0
            restored = load_file(output)
            found[label] = sum(
                output_error(x, tensors[name].float().numpy(), restored[name].float().numpy())
                for name, x in inputs.items()
            )
    assert (tmp_path / "steps.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert found["steps"] < 0.8 * found["plain"]
    schemes = {entry["scheme"] for entry in manifest_of(output)["tensors"].values()}
    assert all(scheme.endswith("-columns") for scheme in schemes)
    assert_same(decoder.decode(str(output)), output)


def test_a_code_out_of_range_is_refused():
    scheme = Ecq(0.3, columns=True)
    params = fit(scheme, weights(8, 8).numpy())
    assert scheme.check(params) is None
    assert scheme.check(params | {"column_step": np.full((1, 8), 64, np.uint8)}) is not None


def test_nobody_asks_for_them_by_name():
    with pytest.raises(UsageError, match="--statistics"):
        Recipe(scheme="ecq-s0.2-columns")
