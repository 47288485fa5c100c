"""Run a kernel as machine code or as its numpy twin, whichever is sooner done. The only module that imports numba.

**The small-run rule.** Importing numba and loading the cached kernels of a run costs about 0.6 s; the twins are two
to five times slower than the kernels. Numba is loaded once the weights announced in this process pass `WORTH_NUMBA`;
below it everything runs in numpy (`benchmarks/small_run.py` prints both sides, docs/benchmarks.md has the figures).
Results do not depend on the choice: a test holds every kernel to the bytes of its twin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

WORTH_NUMBA = 40_000_000  # weights; measured by benchmarks/small_run.py
CHOICE = "MODELZIP_KERNELS"  # numpy or numba: decide by hand, for tests and measurements


class _Work:
    """What this process has announced so far; once numba is loaded it stays in use."""

    announced = 0
    compiled = False


def expect(weights: int) -> None:
    """Announce that `weights` more weights will pass through kernels, before the first call."""
    _Work.announced += weights
    choice = os.environ.get(CHOICE)
    if not _Work.compiled and choice != "numpy" and (choice == "numba" or _Work.announced >= WORTH_NUMBA):
        _Work.compiled = _numba_is_here()


def cache_is_cold() -> bool:
    """Say whether the next kernels will be compiled (seconds, once) and not read from the cache."""
    return _Work.compiled and not any(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbc"))


def _numba_is_here() -> bool:
    if "NUMBA_CACHE_DIR" not in os.environ:  # compiled code is loaded from here: a private folder, never a shared one
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["NUMBA_CACHE_DIR"] = str(home / "modelzip" / "kernels")
    try:
        Path(os.environ["NUMBA_CACHE_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        import numba  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # no wheel for this platform, no writable cache: numpy will do
        return False
    return True


class Kernel(Generic[P, R]):
    """A function with two bodies. `twin` is the definition; the decorated body is what numba compiles."""

    def __init__(self, body: Callable[P, R], twin: Callable[P, R]) -> None:
        self.body, self.twin = body, twin
        self.__doc__, self.__name__ = twin.__doc__, body.__name__
        self._compiled: Callable[P, R] | None = None

    @property
    def compiled(self) -> Callable[P, R]:
        """The body as machine code; compiled for the argument types of the first call and cached on disk."""
        if self._compiled is None:
            import numba

            options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}  # no fastmath: same bytes
            self._compiled = numba.njit(**options)(self.body)
        return self._compiled

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = self.compiled if _Work.compiled and "numba" in sys.modules else self.twin
        return run(*args, **kwargs)


def jit(twin: Callable[P, R]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Decorate the loop form of `twin`. Both fill or return the same arrays, byte for byte."""
    return lambda body: Kernel(body, twin)
