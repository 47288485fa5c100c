"""Sorted weights cut into runs such that the squared distance to the mean of each run is least.

Source: Wang, Song, Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming, The R Journal
3(2), 2011; Song, Zhong, Efficient Weighted Univariate Clustering, Bioinformatics 36, 2020 (divide and conquer: the last
run never begins earlier when a point is appended).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelzip_cli.kernels.jit import expect, jit

Sums = NDArray[np.float64]
Starts = NDArray[np.int32]
WORTH = 40  # what a bin and a run gain by numba, over what one weight that is encoded gains


def _last_starts_numpy(counts: Sums, sums: Sums, runs: int) -> Starts:
    """Return where the last of r + 2 runs begins that end before bin j, for each r and j: int32 [runs - 1, bins + 1].

    `counts` and `sums` are float64 [bins + 1], running totals that begin with 0; `runs` is at most the number of bins.
    What a run saves of the sum of squares is (its sum)^2 / (its count); the sum of that is made as large as possible.
    """
    bins = len(counts) - 1
    starts = np.zeros((runs - 1, bins + 1), np.int32)
    saved = np.zeros(bins + 1)
    saved[1:] = sums[1:] * sums[1:] / counts[1:]
    for run in range(1, runs):
        found, start = np.zeros(bins + 1), starts[run - 1]
        start[run] = run
        step = 1 << (bins - run).bit_length()
        while step:  # every other bin of those with this step; their neighbours, done before, are bounds
            ends = np.arange(run + step, bins + 1, 2 * step)
            step >>= 1
            if not len(ends):
                continue
            after = ends + 2 * step if step else ends + 1
            low = start[ends - (2 * step or 1)].astype(np.int64)
            high = np.where(after <= bins, start[np.minimum(after, bins)], bins)
            sizes = np.minimum(high, ends - 1) - low + 1
            firsts = np.cumsum(sizes) - sizes
            begins = np.arange(int(sizes.sum())) - np.repeat(firsts - low, sizes)
            difference = np.repeat(sums[ends], sizes) - sums[begins]
            trial = saved[begins] + difference * difference / (np.repeat(counts[ends], sizes) - counts[begins])
            found[ends] = np.maximum.reduceat(trial, firsts)
            (best,) = np.nonzero(trial == np.repeat(found[ends], sizes))
            start[ends] = begins[best[np.searchsorted(best, firsts)]]
        saved = found
    return starts


@jit(twin=_last_starts_numpy)
def _last_starts(counts: Sums, sums: Sums, runs: int) -> Starts:
    bins = len(counts) - 1
    starts = np.zeros((runs - 1, bins + 1), np.int32)
    saved = np.zeros(bins + 1)
    for j in range(1, bins + 1):
        saved[j] = sums[j] * sums[j] / counts[j]
    for run in range(1, runs):
        found, start = np.zeros(bins + 1), starts[run - 1]
        start[run] = run
        step = 1
        while step <= bins - run:
            step *= 2
        while step:
            for end in range(run + step, bins + 1, 2 * step):
                low = start[end - step]
                high = start[end + step] if end + step <= bins else bins
                best, best_begin = -1.0, low
                for begin in range(low, min(high, end - 1) + 1):
                    difference = sums[end] - sums[begin]
                    trial = saved[begin] + difference * difference / (counts[end] - counts[begin])
                    if trial > best:
                        best, best_begin = trial, begin
                found[end], start[end] = best, best_begin
            step //= 2
        saved = found
    return starts


def best_runs(counts: NDArray[np.int64], sums: Sums, runs: int) -> list[int]:
    """Cut bins of `counts` weights that add up to `sums`, ascending, into `runs`: where each begins, and the end."""
    expect(len(counts) * runs, WORTH)
    starts = _last_starts(np.concatenate([[0.0], np.cumsum(counts)]), np.concatenate([[0.0], np.cumsum(sums)]), runs)
    cuts = [len(counts)]
    for row in starts[::-1]:
        cuts.append(int(row[cuts[-1]]))
    return [0, *cuts[::-1]]
