"""`prune`: so many zeros as asked, the other weights bit for bit, in files that shrink."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzip_cli.batch.names import derived_name
from tests.checkpoints import bits_of, same, tied_pth, weights
from tests.test_report_schema import assert_is

SAMPLES = Path(__file__).parent.parent.parent / "sample_models"
FILES = [path.name for path in sorted(SAMPLES.iterdir()) if path.suffix in (".pth", ".safetensors")]
NUMPY = {"MODELZIP_KERNELS": "numpy"}  # kernels are compiled once a session, but not for all of this
NUMBA = {"MODELZIP_KERNELS": "numba"}
KEYS = ("model_state_dict", "state_dict")


LAYERS = [f"layers.{n}.weight" for n in range(3)]


def layers(count: int = 3, *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Layers of different scales with biases, an embedding and a classifier."""
    found = {f"layers.{n}.weight": weights(64, 80, seed=n) * (1 + n) for n in range(count)}
    found |= {"layers.0.bias": weights(64), "embed.weight": weights(64, 64), "lm_head.weight": weights(64, 64)}
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def small(path: Path, **more: Any) -> Path:
    save_file(layers(**more), path)
    return path


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a plain checkpoint, read by torch and safetensors."""
    if path.is_dir():
        return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    found = torch.load(path, weights_only=False)
    return next((found[key] for key in KEYS if key in found), found)


def pruned_names(report: dict[str, Any]) -> list[str]:
    """Tensors that may have lost weights, in a run that quantizes nothing."""
    return [row["name"] for row in report["tensors"] if row["energy_kept"] is not None]


def output_size(path: Path) -> int:
    """Bytes of the files with weights."""
    return sum(file.stat().st_size for file in (path.glob("*.safetensors") if path.is_dir() else [path]))


def smallest_zeroed(tensors: dict[str, torch.Tensor], names: list[str], sparsity: float) -> dict[str, torch.Tensor]:
    """What is to come of it: of all `names` together the smallest weights 0, the first of equal ones first."""
    together = torch.cat([tensors[name].reshape(-1).float().abs() for name in names])
    order = torch.argsort(together, stable=True)
    mask = torch.ones(len(order), dtype=torch.bool)
    mask[order[: round(sparsity * len(order))]] = False
    parts = mask.split([tensors[name].numel() for name in names])
    found = {
        name: torch.where(part.reshape(tensors[name].shape), tensors[name], torch.zeros((), dtype=tensors[name].dtype))
        for name, part in zip(names, parts, strict=True)
    }
    return tensors | found


def containers(folder: Path) -> list[Path]:
    """The sample models, a legacy file of torch, and a Hugging Face directory of two shards."""
    folder.mkdir()
    found = [Path(shutil.copy(SAMPLES / name, folder / name)) for name in FILES]
    torch.save(layers(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    whole, index = layers(4, dtype=torch.float16), {}
    for number, names in enumerate((list(whole)[:3], list(whole)[3:]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in names}, model / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(names, shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return [*found, folder / "legacy.pt", model]


def test_every_container_comes_back_with_the_masked_weights_and_the_others_bit_for_bit(modelzip, tmp_path):
    sources = containers(tmp_path / "sources")
    run = modelzip("prune", *sources, "--sparsity", "0.6", "--output-dir", "out", "--json", env=NUMBA)
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("batch", run.json)
    outputs = [Path(report["output"]["path"]) for report in run.json["runs"]]
    assert modelzip("restore", *outputs, "--output-dir", "back", env=NUMBA).exit_code == 0
    for source, output, report in zip(sources, outputs, run.json["runs"], strict=True):
        names, before = pruned_names(report), tensors_of(source)
        rows = [row for row in report["tensors"] if row["name"] in names]
        assert sum(row["bytes_after"] for row in rows) < 0.6 * sum(row["bytes_before"] for row in rows)
        assert output_size(tmp_path / output) == report["output"]["bytes"] < report["source"]["bytes"]
        (back,) = (tmp_path / "back").glob(f"{Path(derived_name(output, 'x', '')).name[:-2]}*")
        after = tensors_of(back)
        expected = smallest_zeroed(before, names, 0.6)
        assert [name for name in before if not same(expected[name], after[name])] == []
        weights_in = sum(before[name].numel() for name in names)
        assert names
        assert report["pruning"]["zeros"] == round(0.6 * weights_in)
        assert report["pruning"]["parameters"] == weights_in
        energy = sum(float(after[name].double().square().sum()) for name in names) / sum(
            float(before[name].double().square().sum()) for name in names
        )
        assert report["pruning"]["energy_kept"] == pytest.approx(energy, abs=2e-6)
    run = modelzip("verify", outputs[-1], "--against", sources[-1])  # of two shards
    assert (run.exit_code, run.stderr) == (0, "")


@pytest.mark.parametrize("options", [["--sparsity", "0.8"], ["--pattern", "2:4", "-s", "int4"]])
def test_verify_replays_the_run_from_its_source(options, modelzip, sample):
    source = sample("digits_mlp.pth")
    assert modelzip("prune", source, *options, "-o", "small.safetensors", "-q").exit_code == 0
    run = modelzip("verify", "small.safetensors", "--against", source)
    assert (run.exit_code, run.stderr) == (0, "")
    assert "the same bytes" in run.stdout


AMOUNTS = {
    "p70": ["--sparsity", "0.7"],
    "p50-random": ["--sparsity", "0.5", "--criterion", "random", "--seed", "3"],
    "t0.02": ["--threshold", "0.02"],
    "2of4": ["--pattern", "2:4"],
    "p70-int4-g128": ["--sparsity", "0.7", "--scheme", "int4"],
}


@pytest.mark.parametrize("tag", AMOUNTS)
def test_an_output_is_named_after_its_amount_and_a_recipe_gives_it_again(tag, modelzip, tmp_path):
    source, output = small(tmp_path / "model.safetensors"), tmp_path / f"model.{tag}.safetensors"
    extra = ["--set", "layers.1.weight=0.25"] if "70" in tag else ["--skip", "layers.1.*"]
    run = modelzip("prune", source, *AMOUNTS[tag], *extra, "--save-recipe", "r.toml", "--json")
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("report", run.json)
    bytes_written = output.read_bytes()
    for command in ("prune", "compress"):
        again = modelzip(command, source, "--recipe", "r.toml", "-o", f"{command}.safetensors", "--json")
        assert (again.exit_code, again.stderr) == (0, "")
        assert_is("report", again.json)
        assert again.json["recipe"] == run.json["recipe"]
        assert (tmp_path / f"{command}.safetensors").read_bytes() == bytes_written


def test_options_override_a_recipe_and_an_amount_takes_the_place_of_another(modelzip, tmp_path):
    source = small(tmp_path / "model.safetensors")
    (tmp_path / "r.toml").write_text('scheme = "int4"\nsparsity = 0.5\nmin_keep = 0.1\n')
    found = modelzip("prune", source, "--recipe", "r.toml", "--sparsity", "0.6", "-n", "--json").json["recipe"]
    assert found == {"scheme": "int4-g128", "layout": "native", "sparsity": 0.6, "min_keep": 0.1}
    (tmp_path / "r.toml").write_text("sparsity = 0.5\n")
    found = modelzip("prune", source, "--recipe", "r.toml", "--pattern", "2:4", "-n", "--json").json["recipe"]
    assert (found["pattern"], found.get("sparsity")) == ("2:4", None)


def test_a_dense_file_has_zeros_that_any_loader_reads_and_a_warning_that_it_does_not_shrink(modelzip, sample, tmp_path):
    source = sample("digits_mlp.pth")
    run = modelzip("prune", source, "--sparsity", "0.5", "--layout", "dense", "-o", "out.pth", "--json")
    assert_is("report", run.json)
    assert any("do not make this file smaller" in warning for warning in run.json["warnings"])
    before, after = tensors_of(source), tensors_of(tmp_path / "out.pth")
    expected = smallest_zeroed(before, pruned_names(run.json), 0.5)
    assert all(same(expected[name], after[name]) for name in before)


def test_set_gives_single_tensors_an_amount_of_their_own_or_leaves_them_alone(modelzip, tmp_path):
    small(tmp_path / "model.safetensors")
    sets = [
        part
        for rule in ("layers.0=0.9", "layers.1=keep", "lm_head=0.25", "layers.0.bias=0.5")
        for part in ("--set", rule)
    ]
    run = modelzip("prune", "model.safetensors", "--sparsity", "0.5", *sets, "-o", "out.safetensors", "--json")
    assert_is("report", run.json)
    rows = {row["name"]: row for row in run.json["tensors"]}
    found = {name: row["sparsity"] for name, row in rows.items()}
    assert found == {
        "layers.0.weight": pytest.approx(0.9, abs=1e-6),
        "layers.1.weight": None,
        "layers.2.weight": pytest.approx(0.5, abs=1e-6),
        "layers.0.bias": pytest.approx(0.5, abs=1e-6),
        "embed.weight": None,
        "lm_head.weight": pytest.approx(0.25, abs=1e-6),
    }
    assert rows["layers.0.weight"]["reason"] == "--set layers.0"
    assert "embedding" in rows["embed.weight"]["reason"]


def test_min_keep_is_named_where_it_spares_a_tensor_and_the_total_is_exact(modelzip, tmp_path):
    small(tmp_path / "model.safetensors")
    for options, spared in ([], []), (["--min-keep", "0.4"], ["layers.0.weight"]):
        run = modelzip("prune", "model.safetensors", "--sparsity", "0.5", *options, "-f", "--json")
        assert_is("report", run.json)
        assert run.json["pruning"]["floored"] == spared
        assert run.json["pruning"]["zeros"] == 3 * 64 * 80 // 2
        warned = [warning for warning in run.json["warnings"] if "--min-keep" in warning]
        assert [name for name in spared if name in "".join(warned)] == spared
        first = next(row for row in run.json["tensors"] if row["name"] == "layers.0.weight")
        assert (first["sparsity"] == pytest.approx(0.6)) == bool(spared)
    text = modelzip("prune", "model.safetensors", "--sparsity", "0.5", "--min-keep", "0.4", "-f").stdout
    assert "--min-keep 0.4 spared 1 tensors" in text


def test_the_report_says_what_was_asked_reached_and_left(modelzip, tmp_path):
    small(tmp_path / "model.safetensors")
    text = modelzip("prune", "model.safetensors", "--sparsity", "0.7").stdout
    assert "0.7 asked, 0.7 reached: 10,752 of 15,360 weights in 3 tensors (before: 0)" in text
    assert "of the sum of squares is left" in text
    assert "pruned without recovery" in text


def test_what_is_pruned_already_is_counted_written_and_not_pruned_twice(modelzip, tmp_path):
    small(tmp_path / "model.safetensors")
    assert (
        modelzip(
            "prune", "model.safetensors", "--sparsity", "0.7", "--layout", "dense", "-o", "a.safetensors"
        ).exit_code
        == 0
    )
    for sparsity in ("0.7", "0.4"):
        run = modelzip("prune", "a.safetensors", "--sparsity", sparsity, "-o", f"{sparsity}.safetensors", "--json")
        assert (run.exit_code, run.stderr) == (0, "")
        assert_is("report", run.json)
        assert run.json["pruning"]["zeros"] == 10752
        assert run.json["pruning"]["sparsity_before"] == run.json["pruning"]["sparsity"] == 0.7
        assert run.json["pruning"]["energy_kept"] == 1.0
        assert any("nothing was left to prune: 70.00%" in warning for warning in run.json["warnings"])
        modelzip("restore", f"{sparsity}.safetensors", "-o", "back.safetensors", "-f")
        before, after = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "back.safetensors")
        assert all(same(before[name], after[name]) for name in before)


def test_what_is_pruned_stays_0_in_every_scheme_and_the_report_counts_it(modelzip, tmp_path):
    schemes = ["int4-g64", "int8", "int2-tensor-mse", "ecq-s0.3", "fp8", "ternary", "nf4", "fixed8", "fp16", "lossless"]
    source = small(tmp_path / "model.safetensors", count=len(schemes))
    sets = [f"--set=layers.{number}={scheme}" for number, scheme in enumerate(schemes)]
    amount = ["--sparsity", "0.6", "--scope", "layer"]
    run = modelzip("prune", source, *amount, *sets, "-o", "small.safetensors", "--json", env=NUMPY)
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("report", run.json)
    assert modelzip("restore", "small.safetensors", "-o", "back.safetensors", env=NUMPY).exit_code == 0
    before, after = load_file(source), load_file(tmp_path / "back.safetensors")
    names = [f"layers.{number}.weight" for number in range(len(schemes))]
    rows, zeros = {row["name"]: row for row in run.json["tensors"]}, 0
    for name, scheme in zip(names, schemes, strict=True):
        assert rows[name]["scheme"].startswith(scheme)
        pruned = smallest_zeroed(before, [name], 0.6)[name] == 0
        assert bits_of(after[name][pruned]).count_nonzero() == 0, scheme
        zeros += int((after[name] == 0).sum())
    assert run.json["pruning"]["zeros"] == zeros >= round(0.6 * len(names) * 64 * 80)


@pytest.mark.parametrize("scheme", ["int4-g64", "ecq-s0.3"])
def test_quantizing_a_restored_file_keeps_its_zeros(scheme, modelzip, tmp_path):
    small(tmp_path / "model.safetensors")
    modelzip("prune", "model.safetensors", "--pattern", "2:4", "-o", "small.safetensors")
    modelzip("restore", "small.safetensors", "-o", "back.safetensors")
    assert modelzip("quantize", "back.safetensors", "-s", scheme, "-o", "q.safetensors", env=NUMPY).exit_code == 0
    modelzip("restore", "q.safetensors", "-o", "again.safetensors")
    before, after = load_file(tmp_path / "back.safetensors"), load_file(tmp_path / "again.safetensors")
    for name in LAYERS:
        assert int((before[name] == 0).sum()) == 64 * 40
        assert not after[name][before[name] == 0].any()


def test_a_tied_embedding_is_left_alone_and_a_tied_layer_is_pruned_once(modelzip, tmp_path):
    source = tied_pth(tmp_path / "tied.pth")
    tensors = torch.load(source, weights_only=True)
    tensors["layers.2.proj.weight"] = tensors["layers.0.proj.weight"]
    torch.save(tensors, source)
    run = modelzip("prune", source, "--sparsity", "0.5", "-o", "small.safetensors", "--json")
    assert_is("report", run.json)
    assert run.json["pruning"]["parameters"] == 2 * 96 * 64
    modelzip("restore", "small.safetensors", "-o", "back.pth")
    before, after = torch.load(source, weights_only=True), torch.load(tmp_path / "back.pth", weights_only=True)
    assert same(before["embed.weight"], after["embed.weight"])
    for one, other in (("embed.weight", "lm_head.weight"), ("layers.0.proj.weight", "layers.2.proj.weight")):
        assert after[one].data_ptr() == after[other].data_ptr()
    names = ["layers.0.proj.weight", "layers.1.proj.weight"]
    expected = smallest_zeroed(before, names, 0.5)
    assert all(same(expected[name], after[name]) for name in names)


def test_both_names_of_a_tie_are_written_as_the_first_was_decided(modelzip, tmp_path):
    """A plain safetensors file has no ties. The random criterion goes by names: it is the first name that counts."""
    source = tied_pth(tmp_path / "tied.pth")
    amounts = ["--set", "embed.weight=0.5", "--set", "lm_head.weight=0.5"]
    options = ["--criterion", "random", "--sparsity", "0.5", "--layout", "dense", "-o", "plain.safetensors"]
    modelzip("prune", source, *options, *amounts)
    found = load_file(tmp_path / "plain.safetensors")
    assert same(found["embed.weight"], found["lm_head.weight"])
    assert int((found["embed.weight"] == 0).sum()) == found["embed.weight"].numel() // 2


@pytest.mark.parametrize("options", [["--sparsity", "0.7"], ["--sparsity", "0.7", "-s", "int4"], ["--pattern", "2:4"]])
def test_a_dry_run_is_close_and_writes_nothing(options, modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    run = modelzip("prune", source, *options, "-n", "--json")
    assert_is("report", run.json)
    assert [*tmp_path.iterdir()] == [source]
    planned, done = run.json, modelzip("prune", source, *options, "--json").json
    assert planned["planned"]["bytes"] == pytest.approx(done["output"]["bytes"], rel=0.02)
    assert planned["pruning"]["zeros"] in (None, done["pruning"]["zeros"])
    assert planned["pruning"]["asked"] == done["pruning"]["asked"]


@pytest.mark.parametrize(
    "options", [["--sparsity", "0.7"], ["--pattern", "2:4", "--criterion", "random", "-s", "int4"]]
)
def test_bytes_depend_neither_on_threads_nor_on_numba(options, modelzip, sample, tmp_path):
    source, found = sample("digits_mlp.pth"), set()
    for kernels, jobs in (("numba", "3"), ("numpy", "1"), ("numpy", "3")):
        run = modelzip(
            "prune", source, *options, "-j", jobs, "-o", "out.safetensors", "-f", env={"MODELZIP_KERNELS": kernels}
        )
        assert (run.exit_code, run.stderr) == (0, "")
        found.add((tmp_path / "out.safetensors").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_seed_is_also_that_of_what_is_drawn_of_data(modelzip, sample, criterion):
    options = ("--sparsity", "0.5", "--criterion", criterion, "--seed", "1", "--data", sample("digits_mlp_test.npz"))
    report = modelzip("prune", sample("digits_mlp.pth"), *options, "--dry-run", "--json").json
    assert report["recipe"].get("seed") == (1 if criterion == "random" else None)


def test_a_pattern_is_that_of_hardware_in_what_restore_writes(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    report = modelzip(
        "prune", source, "--pattern", "1:4", "-o", "small.safetensors", "--set", "stem*=keep", "--json"
    ).json
    modelzip("restore", "small.safetensors", "-o", "back.pth")
    after = tensors_of(tmp_path / "back.pth")
    for name in pruned_names(report):
        groups = after[name].movedim(1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 1).all()
    assert len(pruned_names(report)) > 5


def test_nan_is_refused_by_name_and_place_or_the_tensor_is_left_alone(modelzip, tmp_path):
    tensors = layers()
    tensors["layers.1.weight"][5, 7] = math.nan
    save_file(tensors, tmp_path / "model.safetensors")
    run = modelzip("prune", "model.safetensors", "--sparsity", "0.5")
    assert run.exit_code == 1
    assert "layers.1.weight holds NaN (first at row 5, column 7)" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    run = modelzip(
        "prune", "model.safetensors", "--sparsity", "0.5", "--allow-nonfinite", "-o", "out.safetensors", "--json"
    )
    assert_is("report", run.json)
    assert pruned_names(run.json) == ["layers.0.weight", "layers.2.weight"]
    modelzip("restore", "out.safetensors", "-o", "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors")["layers.1.weight"], tensors["layers.1.weight"])
