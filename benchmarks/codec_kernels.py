"""The kernels of the entropy-coded scheme on one slab in memory, one thread, in multiples of memcpy.

The slab is 1024 x 4096 float32 weights whose rows and columns differ in scale, 24 classes in all, at about 3 bits a
weight. memcpy copies these weights. Every side runs in turn in one process; a ratio is memcpy's time over the side's.
"One lane" is what runs where the CPU lacks AVX2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import common
from common import in_turn, median, spread, verdict

ROWS, COLUMNS = 1024, 4096
STEP = 0.02
GOALS = {
    "trellis path": 0.12,
    "grid points": 0.6,
    "index and escapes": 0.6,
    "rANS encode": 0.25,
    "rANS encode, one lane": 0.08,
    "rANS decode": 0.22,
    "rANS decode, one lane": 0.11,
    "decode to weights": 0.20,
    "decode to weights, one lane": 0.11,
}


def one_lane(module: Any, side: Callable[[], object]) -> object:
    """Run a side without the vector kernels."""
    kept, module.vectors = module.vectors, lambda bits: None
    try:
        return side()
    finally:
        module.vectors = kept


def sides() -> dict[str, Callable[[], object]]:
    """What is timed, by name; checks on the way that what was encoded comes back."""
    import numpy as np

    from modelzip_cli.coders.tables import BITS, Tables, symmetric_from_counts
    from modelzip_cli.kernels import points as passes
    from modelzip_cli.kernels import rans
    from modelzip_cli.kernels.trellis import grid_points, trellis_path
    from modelzip_cli.schemes.ecq import CENTRE, Ecq, low_bits, priors

    random = np.random.default_rng(0)
    of_rows, of_columns = random.integers(0, 12, ROWS), random.integers(4, 17, COLUMNS)
    rows, columns = of_rows.astype(np.int32), of_columns.astype(np.int32)
    scale = 2 ** ((of_rows[:, None] + of_columns - CENTRE) / 4)
    weights = (random.standard_normal((ROWS, COLUMNS)) * scale * STEP).astype(np.float32)
    copy, step = np.empty_like(weights), np.float32(STEP)

    classes, path_class = np.unique(rows, return_inverse=True)
    prices, tables = {}, {}
    for trellis in (True, False):
        scheme = Ecq(step=STEP, states=8 if trellis else 1)
        counts = priors(trellis)
        tables[trellis] = Tables(np.array([symmetric_from_counts(table) for table in counts]))
        by_class = scheme.prices(tables[trellis].rates)
        prices[trellis] = np.ascontiguousarray(by_class[classes[:, None] + columns].transpose(0, 2, 1))
    path = partial(trellis_path, weights, step, path_class.astype(np.int32), prices[True])
    grid = partial(grid_points, weights, step, path_class.astype(np.int32), prices[False])
    found, coded = path(), tables[True]
    contexts = rows, columns, True, low_bits(True)
    index = partial(passes.index_of, found, *contexts, coded.known)
    indices, escapes, low = index()
    encode = partial(rans.encode, indices, coded.intervals, BITS)
    states, words = encode()
    offsets = (indices >> 8).astype(np.int32) << BITS

    def decode() -> tuple[Any, int]:
        return rans.decode_symbols(words, states.copy(), coded.slots, offsets, BITS)

    def restore() -> tuple[Any, int]:
        given = rows, columns, BITS, True, low_bits(True), escapes, low, step
        return passes.decode_points(words, states.copy(), coded.slots, *given)

    assert np.array_equal(decode()[0], indices & 255)
    assert np.array_equal(restore()[0], found.astype(np.float32) * step)
    print(f"{8 * words.nbytes / found.size:.2f} bits a weight, {len(escapes)} escapes")
    return {
        "memcpy": partial(np.copyto, copy, weights),
        "trellis path": path,
        "grid points": grid,
        "index and escapes": index,
        "rANS encode": encode,
        "rANS encode, one lane": partial(one_lane, rans, encode),
        "rANS decode": decode,
        "rANS decode, one lane": partial(one_lane, rans, decode),
        "decode to weights": restore,
        "decode to weights, one lane": partial(one_lane, passes, restore),
    }


def main() -> None:
    """Print one table."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.environ.setdefault("MODELZIP_KERNELS", "numba")
    print(common.versions("modelzip", "numpy", "numba"))
    seconds = in_turn(sides(), options.rounds)
    rows = []
    for name, took in seconds.items():
        speeds = [ROWS * COLUMNS / second / 1e6 for second in took]
        ratio = median([copied / own for copied, own in zip(seconds["memcpy"], took, strict=True)])
        goal = (f">= {GOALS[name]}", verdict(ratio >= GOALS[name])) if name in GOALS else ("", "")
        rows.append([name, f"{median(speeds):.0f}", spread(speeds, 0), f"{ratio:.3f}", *goal])
    columns = ["side", "million weights/s", "min-max", "of memcpy", "goal", "reached"]
    common.print_table(f"{ROWS} x {COLUMNS} weights, one thread, median of {options.rounds}", columns, rows)


if __name__ == "__main__":
    main()
