"""The recipe of a pruned file is untrusted too: `verify --against` refuses it or replays it, whatever stands in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from modelzip_cli.amounts import Pruning
from modelzip_cli.errors import ModelzipError
from modelzip_cli.kernels import jit
from modelzip_cli.recipe import Recipe, Rule
from modelzip_cli.single import Settings, compress_file
from modelzip_cli.verify import verify_file
from tests.checkpoints import weights
from tests.hostile.test_coded import watched
from tests.hostile.test_manifests import EVIL, GONE, Native, changed, places

AMOUNTS = (
    Pruning(sparsity=0.5, criterion="random", seed=7, scope="global", min_keep=0.1),
    Pruning(pattern="2:4"),
)
FORGED = (
    *EVIL[:12],
    *(-0.0, 1e-320, 0.3, 1 - 2**-53, 1.0, 1e39, float("inf"), float("nan"), 2**64, "2:4", "1:9999", "9999:1", "0:0"),
    *(
        "random",
        "magnitude",
        "layer",
        "global",
        "lossless",
        "keep",
        "binary",
        "ecq",
        "ecq-s0.3",
        "dense",
        "re:(",
        "re:.*",
    ),
)

Replay = Callable[[Any], str | bool]


@pytest.fixture(params=AMOUNTS, ids=["sparsity", "pattern"])
def pruned(request, tmp_path, monkeypatch) -> tuple[Native, Replay]:
    """A file with two pruned layers, and what comes of replaying a manifest: whether it is true, or the refusal."""
    monkeypatch.setenv(jit.CHOICE, "numpy")
    monkeypatch.setattr(jit._Work, "numba", None)
    monkeypatch.setattr(jit._Work, "announced", 0)  # what thousands of replays announce is not for the next tests
    source, output = tmp_path / "source.safetensors", tmp_path / "small.safetensors"
    save_file({"w": weights(8, 12), "v": weights(64, 64, seed=1), "b": weights(3)}, source)
    rules = Rule("w", amount=0.25), Rule("v", "int4-g64")
    recipe = Recipe(scheme="lossless", skip=("b",), rules=rules, pruning=request.param)
    compress_file(source, output, recipe, Settings(), command="prune")
    native = Native(output)

    def replay(manifest: Any) -> str | bool:
        path = native.write(tmp_path / "forged.safetensors", manifest)
        with ThreadPoolExecutor(1) as executor, watched():
            try:
                return not verify_file(path, against=Path(source), jobs=1, executor=executor).bad
            except ModelzipError as error:
                return str(error)

    return native, replay


def test_a_forged_recipe_is_refused_or_replayed_without_a_crash(pruned, recwarn):
    native, replay = pruned
    assert replay(native.manifest) is True
    crashes, outcomes = [], set()
    for place in places({"recipe": native.manifest["recipe"]}):
        for value in FORGED:
            try:
                outcome = replay(changed(native.manifest, place, value))
                outcomes.add(outcome if isinstance(outcome, bool) else "refused")
            except UnicodeEncodeError:
                continue
            except Exception as error:
                shown = "(gone)" if value is GONE else repr(value)[:60]
                crashes.append(f"{'.'.join(map(str, place))} = {shown}: {error!r}")
    assert not crashes, f"{len(crashes)} recipes crash the program:\n" + "\n".join(crashes[:20])
    assert outcomes == {True, False, "refused"}
    assert not recwarn.list


@pytest.mark.parametrize("key", [*"abc", "amount", "step", "mask", "zeros"])
def test_a_key_that_no_recipe_has_is_refused(key, pruned):
    native, replay = pruned
    forged = changed(native.manifest, ("recipe", key), 0.5)
    assert f"unknown key '{key}'" in replay(forged)


def test_another_amount_is_not_what_the_file_was_made_with(pruned):
    native, replay = pruned
    for rule in native.manifest["recipe"]["set"]:
        if "amount" in rule:
            rule["amount"] = 0.26
    assert replay(native.manifest) is False
