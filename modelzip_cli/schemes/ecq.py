"""Entropy-constrained quantization: the least error that a stored bit can buy, at any rate.

Sources: Marcellin and Fischer, Trellis coded quantization, IEEE Transactions on Communications 38(1), 1990; Fischer
and Wang, Entropy-constrained trellis-coded quantization, IEEE Transactions on Information Theory 38(2), 1992; Kasner,
Marcellin and Hunt, Universal trellis coded quantization, IEEE Transactions on Image Processing 8(12), 1999; Sullivan,
Efficient scalar quantization of exponential and Laplacian random variables, IEEE Transactions on Information Theory
42(5), 1996 (the plain grid with a threshold for each level).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.errors import BadOption
from modelzip_cli.kernels.sums import energies
from modelzip_cli.kernels.trellis import PRICES, grid_points, trellis_path
from modelzip_cli.schemes.base import Codes, Contexts, Params, ParamSpec, Scheme
from modelzip_cli.tensors import F32, U8, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Block

CLASSES = 40  # quarter octaves of the standard deviation over the step
CENTRE = 12  # the class of a standard deviation of one step
FLOOR = 1 / 16  # added to the relative deviation of a row or column, so that empty ones have a class
LEAST_STEP, MOST_STEP = 0.01, 4.0  # times the root mean square
SHORT_PATH = 256  # rows; a slab with fewer has its paths along the rows where that makes them longer
MOST_PRICE = 1200
NEGLIGIBLE = 1e-9
EIGHTHS = (1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)  # of an octave
COLUMN_STEPS = np.array([math.ldexp(EIGHTHS[k % 8], k // 8 - 4) for k in range(64)], np.float32)
SAME_STEP = 32  # the code of a factor of 1
LEAST_INPUT = 1e-6  # mean square of an input, of the largest
SMALLEST, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)  # steps that float32 can hold
TINY = np.float32(2.0**-100)  # a smaller step and its weights are multiplied by 2^64: 1 / step has to be finite
ROOT = math.sqrt(math.sqrt(2.0))  # square roots are exact to the last bit everywhere, powers are not


@dataclass(frozen=True)
class Ecq(Scheme):
    """`w ~ n * step`, integers n of an open range, entropy coded: the best quality a stored bit.

    The step is `-s` times the root mean square of the tensor, so that every tensor keeps the same SQNR; --bpw,
    --min-sqnr, --ratio and --target-size find it. With the trellis (`-t8`, default) the points that a weight may have
    depend on the weights above it, and the path of least error and bits through all of them is found (Viterbi); 2.9
    bits a weight keep 16.9 dB of Gaussian weights, 3.8 bits 22.6 dB. `-t1` is the plain grid: some 0.15 bit more,
    in less time. Rows and columns of different scale are told to the entropy coder as classes, not scaled. A zero
    stays exactly zero, and nothing is clipped.
    `-columns`, which statistics of a model bring about (compress --statistics): the step of a column is that of the
    tensor times a power of 2^(1/8), finer where the input that the column is multiplied with is larger.
    """

    id: ClassVar[str] = "ecq"
    example: ClassVar[str] = "ecq-s0.15"
    feeds_back: ClassVar[bool] = True
    tall: ClassVar[bool] = True
    step: float | None = None  # times the root mean square
    states: int = 8
    columns: bool = False  # whether columns have steps of their own

    @classmethod
    def parse(cls, width: int | None, options: Sequence[str]) -> Ecq:
        step, states, columns = None, 8, False
        for option in options:
            kind, value = option[:1], option[1:]
            if kind == "s" and value:
                if value.count(".") > 1 or value == ".":
                    raise BadOption(f"ecq-{option}: {value} is not a number")
                step = float(f"{float(value):.6g}")  # as its name says it
                if not LEAST_STEP <= step <= MOST_STEP:
                    raise BadOption(f"ecq-{option}: the step must lie between {LEAST_STEP} and {MOST_STEP:g}")
            elif option in ("t1", "t8"):
                states = int(value)
            elif option == "columns":
                columns = True
            else:
                raise BadOption(f"ecq has no option {option!r}; it has -sSTEP, such as -s0.15, and -t8 or -t1")
        return cls(step, states, columns)

    def __str__(self) -> str:
        step = "" if self.step is None else f"-s{self.step:.6g}"
        return f"ecq{step}" + ("" if self.states == 8 else f"-t{self.states}") + "-columns" * self.columns

    @property
    def bits(self) -> int:
        return 32

    @property
    def levels(self) -> None:
        return None

    @property
    def fits_tensor(self) -> bool:
        return True

    @property
    def trellis(self) -> bool:
        """Whether there is a trellis."""
        return self.states > 1

    def param_specs(self, columns: int) -> dict[str, ParamSpec]:
        vector = ParamSpec(U8, columns, per_row=False, coded=True)
        found = {"step": ParamSpec(F32, 1, per_row=False), "column_class": vector}
        return found | {"column_step": vector} if self.columns else found

    def fit_tensor(self, blocks: Iterable[Block]) -> Params:
        """`step` float32 [1, 1]; `column_class` uint8 [1, columns], quarter octaves above the quietest column; and,
        which is not stored, `least_class` int64 [1, 1], how far that one lies from the root mean square. With
        `-columns`, `column_step` uint8 [1, columns] says that all columns have the step of the tensor."""
        found = self.fit_energies(*tensor_energies(blocks))
        same = np.full_like(found["column_class"], SAME_STEP)
        return found | {"column_step": same} if self.columns else found

    def fit_energies(self, weights: int, total: float, columns: NDArray[np.float64]) -> Params:
        """The same from sums of squares: of all `weights` together and of each column."""
        rms = math.sqrt(total / weights) if weights else 0.0
        wanted = (self.step or 0) * rms
        step = np.float32(min(max(wanted, SMALLEST), LARGEST))
        if not (math.isfinite(wanted) and wanted > 0):
            step = np.float32(1)  # nothing but zeros, or what the engine refuses by name
            none = np.zeros((1, len(columns)), np.uint8)
            return {"step": step.reshape(1, 1), "column_class": none, "least_class": np.zeros((1, 1), np.int64)}
        classes = _classes(columns * len(columns) / weights, rms, 1.0) - CENTRE
        least = classes.min(keepdims=True)
        return {
            "step": step.reshape(1, 1),
            "column_class": np.minimum(classes - least, CLASSES - 1).astype(np.uint8).reshape(1, -1),
            "least_class": least.reshape(1, 1),
        }

    def fit_rows(self, block: Block, tensor: Params) -> Params:
        """`row_class` int32 [rows, 1]; with the class of a column it makes that of a weight, 0 to 39."""
        block = np.ascontiguousarray(self.relative(block, tensor))
        rows = energies(block, np.zeros(block.shape[1])) / block.shape[1]
        return {"row_class": self.row_classes(rows, tensor).reshape(-1, 1)}

    def row_classes(self, mean_squares: NDArray[np.float64], tensor: Params) -> NDArray[np.int32]:
        """Classes of rows with these mean squares, int32 [rows]."""
        step = float(tensor["step"][0, 0])
        rms = step / (self.step or 1)
        classes = _classes(mean_squares, rms, rms / step) + int(tensor["least_class"][0, 0])
        return np.clip(classes, 0, CLASSES - 1 - int(tensor["column_class"].max())).astype(np.int32)

    def contexts(self, params: Params, rows: int, columns: int) -> Contexts:
        return Contexts(
            row_class=params["row_class"].reshape(-1).astype(np.int32),
            column_class=params["column_class"].reshape(-1).astype(np.int32),
            low_bits=low_bits(self.trellis),
            machine=self.trellis,
            along_rows=along_rows(rows, columns),
        )

    def prices(self, rates: NDArray[np.int64]) -> NDArray[Any]:
        """For every class, what the kernels need: int16 [40, 10] with the trellis, int32 [40, 2] without."""
        if self.trellis:
            return np.array([_trellis_prices(rates[2 * c : 2 * c + 2].tobytes(), c) for c in range(CLASSES)], np.int16)
        return np.array([_grid_prices(rates[c].tobytes(), c) for c in range(CLASSES)], np.int32)

    def at(self, params: Params, column: int) -> Params:
        vectors = {"column_class", "column_step"} & params.keys()
        return {**params, **{name: params[name][:, column : column + 1] for name in vectors}}

    def relative(self, block: Block, params: Params) -> Block:
        """Weights over the factors of their columns, or the weights as they are, float32 [rows, columns]."""
        return np.divide(block, COLUMN_STEPS[params["column_step"]], dtype=np.float32) if self.columns else block

    def absolute(self, block: Block, params: Params) -> Block:
        """Back from `relative`: what the coder gives as points times the step becomes weights."""
        return np.multiply(block, COLUMN_STEPS[params["column_step"]], dtype=np.float32) if self.columns else block

    def encode(self, block: Block, params: Params, prices: Any = None) -> Codes:
        """Points n, int16 [rows, columns], int32 where one needs it."""
        return self.encode_path(block, params, prices, along_rows(*block.shape))

    def encode_path(self, block: Block, params: Params, prices: Any, turned: bool) -> Codes:
        """The same with paths along the rows if `turned`, else down the columns."""
        if prices is None:
            raise ValueError("the prices of ecq come from the tables that it is coded with")
        block = self.relative(block, params)
        path, lanes = params["row_class"].reshape(-1), params["column_class"].reshape(-1).astype(np.int32)
        if turned:
            block, path, lanes = np.ascontiguousarray(block.T), lanes, path
        step = params["step"][0, 0]
        if step < TINY:
            block, step = block * np.float32(2.0**64), step * np.float32(2.0**64)
        classes, path_class = np.unique(path, return_inverse=True)
        by_path = np.ascontiguousarray(prices[classes[:, None] + lanes].transpose(0, 2, 1))
        run = trellis_path if self.trellis else grid_points
        points = run(block, step, path_class.astype(np.int32), by_path)
        return np.ascontiguousarray(points.T) if turned else points

    def decode(self, codes: Codes, params: Params) -> Block:
        values: Block = np.multiply(codes, params["step"], dtype=np.float32, casting="same_kind")
        return self.absolute(values, params)

    def check(self, params: Params) -> str | None:
        if not params["step"][0, 0] > 0:
            return "its step is not positive"
        if params["column_class"].max(initial=0) >= CLASSES:
            return "a class is out of range"
        if self.columns and params["column_step"].max(initial=0) >= len(COLUMN_STEPS):
            return "the step of a column is out of range"
        return None

    def guess(self, spec: TensorSpec) -> int:
        """What Gaussian weights take, or, without a step, 3.5 bits a weight."""
        bits = 3.5 if self.step is None else max(0.1, 1.1 - math.log2(self.step))
        return math.ceil(spec.size * bits / 8)

    def stored_bytes(self, rows: int, columns: int) -> int:
        return 4 + (1 + self.columns) * (columns // 2) + self.guess(TensorSpec("", F32, (rows, columns)))


def column_steps(second_moment: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The steps of columns for inputs of these mean squares [1, columns], as codes: c ~ 1 / sqrt(mean square), with a
    geometric mean of 1, so that an error does as much in each column. Inputs that were nearly always 0 are held in."""
    squares = second_moment.astype(np.float64).reshape(-1)
    least = squares.max(initial=0.0) * LEAST_INPUT
    if not least > 0:
        return np.full((1, len(squares)), SAME_STEP, np.uint8)
    octaves = -np.log2(np.maximum(squares, least)) / 2
    codes = np.rint(8 * (octaves - octaves.mean())) + SAME_STEP
    found: NDArray[np.uint8] = np.clip(codes, 0, len(COLUMN_STEPS) - 1).astype(np.uint8).reshape(1, -1)
    return found


def tensor_energies(blocks: Iterable[Block]) -> tuple[int, float, NDArray[np.float64]]:
    """How many weights, the sum of their squares and those of the columns; slab after slab, row after row."""
    weights, total, columns = 0, 0.0, np.zeros(0)
    for block in blocks:
        if not weights:
            columns = np.zeros(block.shape[1])
        total = _added(total, energies(np.ascontiguousarray(block), columns))
        weights += block.size
    return weights, total, columns


def _added(total: float, terms: NDArray[np.float64]) -> float:
    return float(np.add.accumulate(np.concatenate([[total], terms]))[-1])


def along_rows(rows: int, columns: int) -> bool:
    """Whether the paths of a slab run along its rows."""
    return rows < SHORT_PATH and columns > rows


def low_bits(trellis: bool) -> NDArray[np.int32]:
    """Raw bits of each class, int32 [40]: the symbols of a class have a standard deviation of at most 11 or so."""
    return np.maximum(0, (np.arange(CLASSES, dtype=np.int32) - (26 if trellis else 22)) // 4).astype(np.int32)


THRESHOLDS = np.array(  # of the squared deviation over the step: 2^((c - 12 + 1/2) / 2) is where class c ends
    [math.ldexp((ROOT, ROOT * math.sqrt(2.0))[(k - CENTRE) & 1], (k - CENTRE) >> 1) for k in range(-60, 100)]
)


def _classes(mean_squares: NDArray[np.float64], rms: float, factor: float) -> NDArray[np.int64]:
    """round(4 log2((sqrt(mean square) / rms + 1/16) * factor)) + 12."""
    relative = (np.sqrt(mean_squares) / rms + FLOOR) * factor
    found: NDArray[np.int64] = np.searchsorted(THRESHOLDS, relative * relative) - 60
    return found


@lru_cache(maxsize=2)
def priors(trellis: bool) -> NDArray[np.int64]:
    """Counts of symbols as Gaussian weights would have them, int64 [tables, 256]: where rates begin."""
    raw, tables = low_bits(trellis), []
    for c in range(CLASSES):
        density = _gaussian(c)
        for q in range(2 if trellis else 1):
            k = np.arange((len(density) + q) // 2 if trellis else len(density))
            cells = np.where(k == 0, 1.0, np.where(k == 1, 1.5, 2.0)) if q else np.ones(len(k))
            mass = density[np.maximum(2 * k - q, 0) if trellis else k] * cells
            symbols = np.concatenate([k >> raw[c], -k[1:] >> raw[c]]) + 127
            inside = (symbols >= 0) & (symbols < 255)
            counts = np.bincount(symbols[inside], np.concatenate([mass, mass[1:]])[inside], minlength=256)
            tables.append(np.floor(counts / counts.max() * (1 << 20)).astype(np.int64))
    return np.array(tables)


def _gaussian(c: int) -> NDArray[np.float64]:
    """exp(-n^2 / (2 sigma^2)) for n from 0 on while it matters, sigma that of class c, by products alone: they are
    rounded in the same way everywhere."""
    top = c + (CLASSES - c) // 2 * 2  # the exponent doubles from a class to the one two below
    a = math.ldexp(1.0 if (top - CENTRE) % 2 == 0 else math.sqrt(0.5), -((top - CENTRE) // 2) - 1)
    base = 1 - a + a * a / 2 - a * a * a / 6 + a * a * a * a / 24
    for _ in range((top - c) // 2):
        base *= base
    values, ratio, square = [1.0], base, base * base
    while (values[-1] > NEGLIGIBLE and len(values) < 4096) or len(values) < 4:
        values.append(values[-1] * ratio)
        ratio *= square
    return np.array(values)


@lru_cache(maxsize=1024)  # the tables of most classes are the same from one try to the next
def _trellis_prices(tables: bytes, c: int) -> tuple[int, ...]:
    """The 10 prices of class c (`PRICES`) from the rates of its two tables, int64 [2, 256]."""
    rates = np.frombuffer(tables, np.int64).reshape(2, 256)
    numerator, denominator = (3, 20) if c >= CENTRE + 2 else (1, 8)  # 0.3 or 0.25 squared steps a bit, in 1/128
    found = dict.fromkeys(PRICES, 0)
    for q in range(2):
        costs = _costs(rates[q], int(low_bits(True)[c]))
        zero, price = costs[0][0], [cost * numerator // denominator for cost, _ in costs]
        cosets = {0: [(m, 2 * m) for m in range(1, 63)], 2: [(m, 2 * m + 1) for m in range(62)]}
        if q:
            cosets = {1: [(m, 2 * m + 1) for m in range(62)], 3: [(m, 2 * m + 2) for m in range(62)]}
        points = {r: [(m, price[k], costs[k][1]) for m, k in line if costs[k][1]] for r, line in cosets.items()}
        slope = min(max(_slope(points.values()), 0), 249)
        found[f"B{q}"], found[f"D{q}"] = slope, (slope + 16) // 32
        found[f"Z{q}"] = min(zero * numerator // denominator, MOST_PRICE)
        for r, line in points.items():
            weight = sum(w for _, _, w in line)
            mean = sum(w * (p - slope * m) for m, p, w in line) // weight if weight else MOST_PRICE
            found[f"A{r}"] = min(max(mean, -slope if r == 0 else 0), MOST_PRICE)
    return tuple(found[name] for name in PRICES)


@lru_cache(maxsize=1024)
def _grid_prices(table: bytes, c: int) -> tuple[int, int]:
    """The threshold of zero and the shift of class c, in 1/256 of a step; a bit costs 0.1 squared steps, or 0.15."""
    rates = np.frombuffer(table, np.int64)
    numerator, denominator = (1, 10) if c >= CENTRE else (3, 20)
    costs = _costs(rates, int(low_bits(False)[c]))
    zero = costs[0][0]
    threshold = min(
        128 * k + (cost - zero) * numerator // (2 * k * denominator) for k, (cost, _) in enumerate(costs) if k
    )
    steps = [(costs[k + 1][0] - costs[k][0], costs[k][1]) for k in range(1, len(costs) - 1) if costs[k + 1][1]]
    weight = sum(w for _, w in steps)
    rise = sum(step * w for step, w in steps) // weight if weight else 0
    return max(threshold, 1), 128 - min(max(rise, 0) * numerator // (2 * denominator), 127)


def _costs(rates: NDArray[np.int64], raw: int) -> list[tuple[int, int]]:
    """Of magnitudes k from 0 on: the mean cost of k and -k in 1/256 bit, and a weight, 0 where k escapes."""
    found = []
    escape = int(rates[255]) + 16 * 256
    for k in range(127):
        each = [int(rates[(signed >> raw) + 127]) for signed in (k, -k)]
        known = max(each) < 1 << 15
        cost = sum(each) // 2 if known else escape
        found.append((cost + 256 * raw, (1 << 20) >> min(cost >> 8, 20) if known else 0))
    return found


def _slope(lines: Iterable[list[tuple[int, int, int]]]) -> int:
    """The slope that fits several lines of (x, y, weight) best, each with an intercept of its own."""
    rise = run = 0
    for line in lines:
        weight = sum(w for *_, w in line)
        if not weight:
            continue
        x, y = (sum(w * point[k] for *point, w in line) for k in (0, 1))
        rise += sum(w * (weight * p[0] - x) * (weight * p[1] - y) for *p, w in line) // (weight * weight)
        run += sum(w * (weight * p[0] - x) ** 2 for *p, w in line) // (weight * weight)
    return rise // run if run else 0
