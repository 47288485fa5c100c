"""Weights that schemes must survive, and Hypothesis strategies for more of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from inspect import getdoc
from itertools import combinations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_cli.errors import BadOption
from modelzip_cli.schemes import SCHEMES, parse_scheme, scheme_class
from modelzip_cli.schemes.base import Params, Scheme

F32 = np.finfo(np.float32)
RNG = np.random.default_rng(0)

WEIGHTS = {
    "normal": RNG.normal(0, 0.02, (7, 65)).astype(np.float32),
    "many rows": RNG.normal(0, 1, (300, 9)).astype(np.float32),
    "several groups": RNG.normal(0, 0.02, (5, 300)).astype(np.float32),
    "skewed": RNG.exponential(1, (6, 140)).astype(np.float32),
    "heavy tails": RNG.standard_t(2, (6, 140)).astype(np.float32),
    "half zeros": (RNG.normal(0, 1, (6, 140)) * (RNG.random((6, 140)) < 0.5)).astype(np.float32),
    "zeros": np.zeros((3, 4), np.float32),
    "negative zeros": np.full((2, 5), -0.0, np.float32),
    "a row of zeros": np.array([[1, 2, 3], [0, 0, 0]], np.float32),
    "constant": np.full((3, 70), 0.37, np.float32),
    "negative constant": np.full((3, 70), -0.37, np.float32),
    "one sign": np.abs(RNG.normal(0, 1, (3, 40))).astype(np.float32) + 1,
    "one element": np.array([[3.0]], np.float32),
    "one row": RNG.normal(0, 1, (1, 257)).astype(np.float32),
    "one column": RNG.normal(0, 1, (33, 1)).astype(np.float32),
    "empty": np.empty((0, 8), np.float32),
    "no columns": np.empty((3, 0), np.float32),
    "tiny beside huge": np.array([[1e-30, 1e30, -1e-30], [1e-38, -1e38, 1]], np.float32),
    "subnormal": np.array([[1e-45, -1e-45, 3e-42], [F32.tiny, -F32.tiny / 2, 0]], np.float32),
    "ends of float32": np.array([[F32.min, F32.max]], np.float32),
    "lower end of float32": np.array([[F32.min, 0, 1]], np.float32),
    "upper end of float32": np.array([[F32.max, 0, 1]], np.float32),
    "ends of float16": np.array([[65504, -65504, 6e-8, 6.1e-5]], np.float32),
}


def all_schemes() -> list[Scheme]:
    """Every scheme of the table: its example, each of its widths, and the options that its docstring names: alone at
    the widest, alone and in pairs and triples at the narrowest."""
    found: dict[str, Scheme] = {}
    for scheme_id in SCHEMES:
        for name in _names(scheme_id):
            try:
                scheme = parse_scheme(name)
            except BadOption:  # options that exclude each other
                continue
            assert scheme is not None
            found[str(scheme)] = scheme
    return list(found.values())


def closed_schemes() -> list[Scheme]:
    """Those of them whose codes are below `levels`."""
    return [scheme for scheme in all_schemes() if scheme.levels is not None]


def open_schemes() -> list[Scheme]:
    """Those of them whose codes are any integers, coded under contexts."""
    return [scheme for scheme in all_schemes() if scheme.levels is None and not scheme.raw]


def _names(scheme_id: str) -> Iterator[str]:
    scheme = scheme_class(scheme_id)
    yield scheme.example
    widths: Sequence[object] = scheme.widths or [""]
    options = sorted({"-g32", *re.findall(r"`(-[a-z]+\d*)`", getdoc(scheme) or "")})
    for width in widths:
        yield f"{scheme_id}{width}"
    for width, most in ((widths[-1], 1), (widths[0], 3)):
        for count in range(1, most + 1):
            for chosen in combinations(options, count):
                yield f"{scheme_id}{width}{''.join(chosen)}"


def fit(scheme: Scheme, weight: np.ndarray, cuts: Sequence[int] = ()) -> Params:
    """The params of a whole tensor; `cuts` are rows at which it is cut into blocks."""
    blocks = np.split(weight, cuts)
    tensor = scheme.fit_tensor(blocks)
    rows = [scheme.fit_rows(block, tensor) for block in blocks]
    return tensor | {name: np.concatenate([params[name] for params in rows]) for name in rows[0]}


def part_of(scheme: Scheme, params: Params, columns: int, first: int, last: int) -> Params:
    """The params of rows [first, last)."""
    specs = scheme.param_specs(columns)
    return {name: values[first:last] if specs[name].per_row else values for name, values in params.items()}


def restored(scheme: Scheme, weight: np.ndarray) -> np.ndarray:
    """The weights after a way there and back."""
    params = fit(scheme, weight)
    return scheme.decode(scheme.encode(weight, params), params)


def squared_error(scheme: Scheme, weight: np.ndarray) -> float:
    """Sum of squared errors, in float64."""
    return float(np.square(restored(scheme, weight).astype(np.float64) - weight.astype(np.float64)).sum())


def sqnr_db(scheme: Scheme, weight: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10(np.square(weight.astype(np.float64)).sum() / squared_error(scheme, weight)))


def shapes(*, min_side: int = 0, max_side: int = 40) -> st.SearchStrategy[tuple[int, ...]]:
    """[rows, columns]."""
    return hnp.array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=max_side)


def any_weight(*, min_side: int = 0, max_side: int = 40) -> st.SearchStrategy[np.ndarray]:
    """Finite float32 [rows, columns]: subnormals, negative zero and the ends included."""
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return hnp.arrays(np.float32, shapes(min_side=min_side, max_side=max_side), elements=finite)


def any_float_bits(*, min_side: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Any bits of float32 [rows, columns] as uint32: NaN of all kinds and infinities included."""
    every = st.integers(0, 2**32 - 1) | st.floats(width=32).map(lambda value: int(np.float32(value).view(np.uint32)))
    return hnp.arrays(np.uint32, shapes(min_side=min_side), elements=every)
