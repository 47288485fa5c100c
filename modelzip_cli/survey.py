"""What can be learnt of weights in one pass over them, before anything is decided: range, zeros, tails, waste."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.criteria.patterns import inputs_of
from modelzip_cli.kernels import jit
from modelzip_cli.kernels.histogram import BINS, bin_edges, empty_histogram, tally
from modelzip_cli.kernels.rounding import extremes
from modelzip_cli.kernels.widen import widen
from modelzip_cli.report import finite, significant
from modelzip_cli.schemes.granularity import WHOLE_ROW
from modelzip_cli.source import Checkpoint
from modelzip_cli.tensors import DType, TensorSpec

if TYPE_CHECKING:
    from modelzip_cli.tensors import Bits

FAR = 6.0  # times the root mean square; of Gaussian weights, one in 500 million lies farther out
EXPONENTS = 256
BARS = 16  # of the histogram in reports
SMALLER = {  # dtype -> (smaller dtype, low bits of the integer that are zero in each of its values)
    "f32": (("bf16", 16), ("f16", 13)),
    "f64": (("bf16", 45), ("f16", 42), ("f32", 29)),
}


@dataclass(frozen=True)
class TensorSurvey:
    """Figures of one float tensor, over its finite weights; `histogram` counts them by the exponent of float32 [256].

    `two_of_four`: the share of groups of four along the input dimension with at most two weights other than 0, None
    where four does not divide it. `rms` is the root mean square; `outliers` how many weights lie beyond six times
    that; `dead_rows` how many rows of the matrix view (output channels) hold nothing but zeros; `fits` which
    smaller dtypes hold every value. Weights of f64 are taken as float32, which may make them 0 or infinite; `fits`
    looks at all 64 bits.
    """

    name: str
    weights: int
    minimum: float
    maximum: float
    mean: float
    rms: float
    zeros: int
    nonfinite: int
    outliers: int
    rows: int
    dead_rows: int
    two_of_four: float | None
    exponent_entropy: float
    fits: tuple[str, ...]
    histogram: NDArray[np.int64]

    @property
    def signal(self) -> float:
        """The sum of squares."""
        return self.rms * self.rms * (self.weights - self.nonfinite)

    @property
    def came_from(self) -> str | None:
        """The smallest dtype that holds every value, where it is not the tensor's own."""
        return self.fits[0] if self.fits and self.weights else None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        low, bars = bars_of(self.histogram)
        return {
            "minimum": significant(self.minimum),
            "maximum": significant(self.maximum),
            "mean": significant(self.mean),
            "rms": significant(self.rms),
            "sparsity": finite(self.zeros / max(self.weights, 1), 6),
            "nonfinite": self.nonfinite,
            "outliers": finite(self.outliers / max(self.weights, 1), 9),
            "rows": self.rows,
            "dead_rows": self.dead_rows,
            "two_of_four": finite(self.two_of_four, 6),
            "exponent_entropy": finite(self.exponent_entropy, 4),
            "came_from": self.came_from,
            "histogram": {"log2_from": low, "counts": bars},
        }


def survey(source: Checkpoint, executor: Executor) -> dict[str, TensorSurvey]:
    """Survey every float tensor of `source`, those of a tie once, one tensor a task on `executor`."""
    ties: Mapping[str, str] = source.outer.ties if source.outer else {}
    specs = [spec for name, spec in source.specs.items() if name not in ties and spec.dtype.kind == "float"]
    jit.expect(sum(spec.size for spec in specs))
    found = executor.map(lambda spec: survey_tensor(source, spec), specs)
    return {spec.name: figures for spec, figures in zip(specs, found, strict=True)}


def survey_tensor(source: Checkpoint, spec: TensorSpec) -> TensorSurvey:
    """Go through one tensor of a float dtype, slab by slab."""
    counts, sums = empty_histogram()
    columns = spec.matrix[1]
    used, fits = np.uint64(0), SMALLER.get(spec.dtype.id, ())
    squares, lowest, highest, zeros, dead, ready = 0.0, math.inf, -math.inf, 0, 0, 0
    inputs, inner = inputs_of(spec)
    in_fours = inputs > 0 and inputs % 4 == 0 and len(spec.shape) > 1
    for first, last in spec.row_slabs():
        bits = source.read(spec.name, first * columns, last * columns)
        used |= np.uint64(np.bitwise_or.reduce(bits))
        fits = tuple(one for one in fits if not int(used) & ((1 << one[1]) - 1) and _holds(one[0], bits, spec.dtype))
        block = widen(bits.reshape(last - first, columns), spec.dtype)
        counts, sums = tally(block, counts, sums)
        zeros_here = block.size - int(np.count_nonzero(block))
        zeros += zeros_here
        if in_fours and zeros_here:
            ready += int(np.count_nonzero((block != 0).reshape(-1, 4, inner).sum(axis=1, dtype=np.uint8) <= 2))
        low, high = extremes(block, WHOLE_ROW)
        dead += int(np.count_nonzero((low == 0) & (high == 0)))
        whole = block[np.isfinite(block)] if not (np.isfinite(low).all() and np.isfinite(high).all()) else block
        if whole.size:
            lowest, highest = min(lowest, float(whole.min())), max(highest, float(whole.max()))
            squares += float(np.square(whole, dtype=np.float64).sum())
    edges = _magnitudes()
    is_number = np.isfinite(edges)
    total = int(counts[is_number].sum())
    rms = math.sqrt(squares / total) if total else 0.0
    exponents = _by_exponent(counts)
    exponents[-1] = 0  # NaN and infinities
    return TensorSurvey(
        name=spec.name,
        weights=spec.size,
        minimum=lowest if total else 0.0,
        maximum=highest if total else 0.0,
        mean=float(sums[is_number].sum()) / total if total else 0.0,
        rms=rms,
        zeros=zeros,
        nonfinite=spec.size - total,
        outliers=int(counts[is_number & (edges > FAR * rms)].sum()) if rms else 0,
        rows=spec.matrix[0],
        dead_rows=dead,
        two_of_four=4 * ready / spec.size if in_fours and spec.size else None,
        exponent_entropy=entropy(exponents),
        fits=tuple(name for name, _ in fits),
        histogram=exponents,
    )


@lru_cache(maxsize=1)
def _magnitudes() -> NDArray[np.float64]:
    """The smallest magnitude in each bin of the histogram, float64 [65536]."""
    with np.errstate(invalid="ignore"):  # some bins are those of NaN
        return np.abs(bin_edges(np.arange(BINS)).astype(np.float64))


def _by_exponent(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weights by their 8 bits of exponent, [256]; zeros and subnormals in the first, what is not finite in the last."""
    halves = counts.reshape(2, EXPONENTS, BINS // (2 * EXPONENTS))  # negative weights come first, largest first
    by_exponent: NDArray[np.int64] = halves[0].sum(axis=1)[::-1] + halves[1].sum(axis=1)
    return by_exponent


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits a symbol that `counts` need at least: -sum p log2 p."""
    total = int(counts.sum())
    return float(sum(n / total * math.log2(total / n) for n in counts.tolist() if n)) if total else 0.0


def _holds(name: str, bits: Bits, dtype: DType) -> bool:
    """Whether the dtype `name` has each of these values, whose low bits have been found to be zero; any NaN is one."""
    values = bits.view(f"<f{dtype.unit_bytes}")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = values.astype(np.float16 if name == "f16" else np.float32)
        if name == "bf16" and np.bitwise_or.reduce(narrow.view(np.uint32)) & 0xFFFF:  # below its least subnormal
            return False
        return bool(((narrow == values) | np.isnan(values)).all())


def bars_of(histogram: NDArray[np.int64]) -> tuple[int | None, list[int]]:
    """At most 16 bars over the range that is in use: (log2 of where they begin, counts). None without weights."""
    (used,) = np.nonzero(histogram[1:])  # zeros and subnormals have no place on a logarithmic scale
    if not len(used):
        return None, []
    used += 1
    last = int(used[-1])
    first = max(int(used[0]), last - BARS + 1)
    bars = histogram[first : last + 1].copy()
    bars[0] += histogram[1:first].sum()  # the long tail towards 0
    return first - 127, [int(n) for n in bars]


def merged(histograms: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The histogram of several tensors together."""
    return np.add.reduce(list(histograms)) if histograms else np.zeros(EXPONENTS, np.int64)
