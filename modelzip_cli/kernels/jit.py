"""Run a kernel as machine code or as its numpy twin, whichever is sooner done. The only module that imports numba.

**The small-run rule.** Importing numba and loading the cached kernels of a run costs about 0.6 s; the twins are two
to five times slower than the kernels. Numba is loaded once the weights announced in this process pass `WORTH_NUMBA`;
below it everything runs in numpy (`benchmarks/small_run.py` prints both sides, docs/benchmarks.md has the figures).
Results do not depend on the choice: a test holds every kernel to the bytes of its twin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

WORTH_NUMBA = 60_000_000  # weights; whole runs break even at 49 to 72 million (benchmarks/small_run.py)
DECODING = 1 / 16  # what decoding a weight gains by numba, over what encoding one gains
SEARCHING = 3000  # what a weight of `ecq` gains: it is tried a dozen times, and paths leave numpy little to do at once
CODED = 100  # what entropy coding a weight gains, either way: numpy takes a microsecond for one
ONE_LANE = 1000  # the same where numpy has one symbol at a time: a vector of classes
CHOICE = "MODELZIP_KERNELS"  # numpy or numba: decide by hand, for tests and measurements


class _Work:
    """What this process has announced so far, and whether numba was loaded for it (None: not tried yet)."""

    announced = 0
    numba: bool | None = None
    lock = Lock()


def expect(weights: int, share: float = 1) -> None:
    """Announce that `weights` more weights will pass through kernels. Numba is loaded by the first call, if at all.

    `share`: what a weight gains by it, over what one gains that is encoded.
    """
    _Work.announced += int(weights * share)


def _is_worth_numba() -> bool:
    choice = os.environ.get(CHOICE)
    return choice == "numba" or (choice != "numpy" and _Work.announced >= WORTH_NUMBA)


def _use_numba() -> bool:
    if _Work.numba is None and _is_worth_numba():
        with _Work.lock:
            if _Work.numba is None:
                _Work.numba = _load_numba()
    return bool(_Work.numba)


def runs_compiled() -> bool:
    """Say whether kernels run as machine code: what is best for the caches is not best for numpy."""
    return _use_numba()


def cache_folder() -> Path:
    """Where compiled kernels are kept: they are code that is loaded again, so a private folder, never a shared one."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "modelzip" / "kernels"


def will_compile() -> bool:
    """Say whether the announced work will first compile kernels, which takes seconds, once."""
    return _Work.numba is not False and _is_worth_numba() and not any(cache_folder().rglob("*.nbc"))


def _load_numba() -> bool:
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
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
            with _Work.lock:  # two workers may come here at once
                if self._compiled is None:
                    import numba

                    options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}  # no fastmath
                    self._compiled = numba.njit(**options)(self.body)
        return self._compiled

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return (self.compiled if _use_numba() else self.twin)(*args, **kwargs)


def jit(twin: Callable[P, R]) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Decorate the loop form of `twin`. Both fill or return the same arrays, byte for byte."""
    return lambda body: Kernel(body, twin)
