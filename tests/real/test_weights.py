"""Weights of all dtypes, shapes and distributions."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from modelzip_cli import load_file
from tests.checkpoints import same, weights
from tests.real.checks import assert_refused, assert_same, each_form, load
from tests.real.makers import Tensors

# Dtypes


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "fp16", "bf16", "fixed8", "binary"])
@each_form
def test_integers_inside_pass_bit_for_bit_beside_floats_of_all_kinds(write, scheme, run, there_and_back, tmp_path):
    exact = {
        "bn.num_batches_tracked": torch.tensor(3_876_387),
        "position_ids": torch.arange(514).expand(1, -1),
        "token_ids": torch.randint(0, 2**62, (50_000,), generator=torch.Generator().manual_seed(0)),
        "token_table": torch.randint(-(2**31), 2**31, (500, 100), generator=torch.Generator().manual_seed(1)),
        "mask": torch.rand(80, 80, generator=torch.Generator().manual_seed(2)) > 0.5,
        "bytes": torch.arange(4096 * 2, dtype=torch.int32).to(torch.uint8).view(64, 128),
    }
    floats = {
        "f32": weights(64, 80, seed=65),
        "f16": weights(64, 80, seed=66).half(),
        "bf16": weights(64, 80, seed=67).bfloat16(),
        "f64": weights(64, 80, seed=68).double(),
    }
    path = write(tmp_path / "m.pth", {**exact, **floats})
    found = load(there_and_back(path, "-s", scheme))
    assert_same({key: found[key] for key in exact}, exact)
    assert {key: found[key].dtype for key in floats} == {key: tensor.dtype for key, tensor in floats.items()}


# Zero-dim and one-element tensors


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "int4-g32-asym", "fixed8-channel", "binary-tensor", "fp16"])
def test_tensors_inside_with_no_dimension_or_one_element_come_back(scheme, there_and_back, tmp_path):
    value = {f"quant.{number}.scale": torch.tensor(0.01 * number) for number in range(127)}
    value |= {"shift": torch.tensor([-0.5]), "similarity_weight": torch.tensor([[10.0]]), "w": weights(64, 64)}
    torch.save(value, tmp_path / "m.pth")
    found = load(there_and_back(tmp_path / "m.pth", "-s", scheme))
    assert_same({key: found[key] for key in value if key != "w"}, {key: value[key] for key in value if key != "w"})

    named = [
        option for key in ("quant.5.scale", "shift", "similarity_weight") for option in ("--set", f"{key}={scheme}")
    ]
    found = load(there_and_back(tmp_path / "m.pth", *named))  # by their full names, they are taken
    for key in ("quant.5.scale", "shift", "similarity_weight"):
        assert (found[key].shape, found[key].dtype) == (value[key].shape, value[key].dtype)
        assert found[key].item() == pytest.approx(value[key].item(), rel=0.01)


# Most tensors are tiny. test_a_file_with_nothing_to_treat_is_written_with_a_warning (cli/test_quantize.py) holds the
# files whose compressed form is larger than the source


def many_tiny() -> Tensors:
    """517 tensors, 374 of them with under 1,024 values."""
    value: Tensors = {}
    for number in range(143):
        value[f"blocks.{number}.conv.weight"] = weights(32, 32, seed=number)
    for number in range(187):
        value[f"blocks.{number}.norm.weight"] = torch.ones(32)
        value[f"blocks.{number}.norm.bias"] = torch.zeros(32)
    return value


def test_hundreds_of_tiny_tensors_inside_are_folded_in_a_report(run, tmp_path):
    torch.save(many_tiny(), tmp_path / "m.pth")
    for command in (("inspect",), ("quantize", "-f")):
        done = run(*command, tmp_path / "m.pth")
        assert done.exit_code == 0, done.stderr
        assert len(done.stdout.splitlines()) < 40


def test_the_size_that_is_reported_counts_the_header_that_tiny_tensors_inside_cost(run, tmp_path):
    torch.save(many_tiny(), tmp_path / "m.pth")
    report = run("quantize", tmp_path / "m.pth", "--json").json
    size = (tmp_path / "m.int8.safetensors").stat().st_size
    assert report["output"]["bytes"] == size
    assert report["totals"]["ratio"] == pytest.approx((tmp_path / "m.pth").stat().st_size / size, rel=1e-3)


def test_a_file_of_five_kilobytes_with_little_inside_that_grows_is_said_to(run, tmp_path):
    value = {f"layers.{number}.{part}": weights(8, 4, seed=number) for number in range(8) for part in ("w", "b")}
    save_file(value, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 5000
    done = run("quantize", tmp_path / "m.safetensors", "--json")
    assert done.exit_code == 0
    assert any("larger than the source" in warning for warning in done.json["warnings"])
    assert_same(load_file(tmp_path / "m.int8.safetensors"), load(tmp_path / "m.safetensors"))


# Constant tensors


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-g32-asym-mse", "int2-g32", "fixed8-mse", "binary", "fp16"])
def test_constants_inside_give_neither_a_warning_nor_a_nan(scheme, run, there_and_back, tmp_path):
    value = {"norm.weight": torch.ones(256), "norm.bias": torch.zeros(256)}
    value |= {"ones": torch.ones(64, 64), "zeros": torch.zeros(64, 64), "halves": torch.full((64, 64), -0.5)}
    torch.save(value, tmp_path / "m.pth")
    done = run("quantize", tmp_path / "m.pth", "-s", scheme, "--json", "-o", "x.safetensors")
    assert done.exit_code == 0, done.stderr
    assert done.json["warnings"] == []  # and .json refuses NaN and Infinity
    rows = {row["name"]: row for row in done.json["tensors"]}
    assert (rows["zeros"]["sqnr_db"], rows["zeros"]["exact"], rows["zeros"]["cosine"]) == (None, True, None)
    found = load(there_and_back(tmp_path / "m.pth", "-s", scheme))
    assert torch.equal(found["zeros"], value["zeros"])
    assert all(torch.allclose(found[key], value[key], atol=0.01) for key in value)
    plain = run("quantize", tmp_path / "m.pth", "-s", scheme, "-f", "--format", "plain", "-v").stdout
    assert "nan" not in plain.lower()
    assert run("diff", tmp_path / "m.pth", "x.safetensors", "--json").json["totals"]["equal"] >= 3


# Range. test_fp16_keeps_a_tensor_that_would_overflow (cli/test_quantize.py) holds the matrix


def overflowing() -> Tensors:
    """A convolution and a BatchNorm whose running variance float16 cannot hold."""
    variance = torch.linspace(0.1, 497_160, 64)
    return {"conv.weight": weights(64, 80, seed=69), "bn.running_var": variance, "bn.running_mean": torch.ones(64)}


def test_a_variance_inside_that_overflows_float16_is_kept(run, tmp_path):
    torch.save(overflowing(), tmp_path / "m.pth")
    done = run(
        "quantize", tmp_path / "m.pth", "-s", "fp16", "--set", "bn.running_var=fp16", "--layout", "dense", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = load(tmp_path / "m.fp16.pth")
    assert found["conv.weight"].dtype == torch.float16
    assert same(found["bn.running_var"], overflowing()["bn.running_var"])


def test_a_restore_to_float16_never_makes_an_infinity_of_what_is_inside(run, tmp_path):
    torch.save(overflowing(), tmp_path / "m.pth")
    done = run("restore", tmp_path / "m.pth", "--dtype", "f16", "-o", "half.pth")
    if done.exit_code:
        assert_refused(done, 1, "bn.running_var")
        assert not (tmp_path / "half.pth").exists()
    else:
        assert load(tmp_path / "half.pth")["bn.running_var"].isfinite().all()


# All-non-negative weights


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_weights_inside_of_one_sign_get_the_bit_that_a_symmetric_grid_wastes(bits, run, tmp_path):
    torch.save({"decoder.weight": weights(64, 256, 1, 1, seed=70, sigma=1.0).abs()}, tmp_path / "m.pth")
    figures = {}
    for scheme in (f"int{bits}-channel", f"int{bits}-channel-asym"):
        report = run("quantize", tmp_path / "m.pth", "-s", scheme, "--json", "-f").json
        figures[scheme] = report["totals"]["sqnr_db"]
    symmetric, asymmetric = figures.values()
    assert 4.5 < asymmetric - symmetric < 8


# Stored constants, not learned


def test_positional_tables_inside_are_kept_and_other_constants_can_be(run, tmp_path):
    value = {
        "pos": weights(1, 512, 16, seed=71),
        "encoder.position_embeddings.weight": weights(512, 64, seed=72),
        "stft.forward_basis": weights(130, 1, 128, seed=73),
        "rbf.centres": torch.linspace(0, 5, 300),
        "cents_mapping": torch.linspace(0, 7180, 360),
        "proj.weight": weights(64, 80, seed=74),
    }
    torch.save(value, tmp_path / "m.pth")
    rows = run("quantize", tmp_path / "m.pth", "--skip", "stft.*", "--json").json["tensors"]
    status = {row["name"]: row["status"] for row in rows}
    assert [name for name in status if status[name] == "compressed"] == ["proj.weight"]
    found = load_file(tmp_path / "m.int8.safetensors")
    assert all(same(found[key], tensor) for key, tensor in value.items() if key != "proj.weight")


# Weight-norm pairs


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ("original0", "original1")])
def test_the_product_of_a_weight_norm_pair_inside_keeps_its_quality(names, run, there_and_back, tmp_path):
    direction = weights(96, 64, 3, seed=75)
    size = torch.rand(96, 1, 1, generator=torch.Generator().manual_seed(0)) * 5
    value = {f"conv.{names[0]}": size, f"conv.{names[1]}": direction, "conv.bias": torch.zeros(96)}
    torch.save(value, tmp_path / "m.pth")

    def product(tensors: Tensors) -> torch.Tensor:
        g, v = (tensors[f"conv.{name}"] for name in names)
        return g * v / v.norm(dim=(1, 2), keepdim=True)

    found = load(there_and_back(tmp_path / "m.pth"))
    assert same(found[f"conv.{names[0]}"], size)
    error = product(found) - product(value)
    assert 10 * torch.log10(product(value).square().sum() / error.square().sum()) > 38


# Oddly shaped weights

ODD_SHAPES = [
    *((1, 264), (1, 512, 512), (1024, 1, 512, 1), (64, 1, 3), (128, 3584), (64, 1, 1024), (8, 33, 66)),
    *((2000, 3), (400, 15), (128, 66), (64, 262), (64, 416), (1, 1, 1, 8000), (8000, 1), (130, 130)),
]


@pytest.mark.parametrize("scheme", ["int8", "int4-g64", "int4-g128-asym", "int3-g32", "fixed8-channel"])
def test_weights_inside_of_odd_shapes_keep_them(scheme, run, there_and_back, tmp_path):
    value = {f"w{'x'.join(map(str, shape))}": weights(*shape, seed=n) for n, shape in enumerate(ODD_SHAPES)}
    torch.save(value, tmp_path / "m.pth")
    found = load(there_and_back(tmp_path / "m.pth", "-s", scheme))
    assert [*found] == [*value]
    bits = int(scheme.removeprefix("int").removeprefix("fixed")[0])
    for key, weight in value.items():
        assert found[key].shape == weight.shape
        step = weight.abs().max() / 2 ** (bits - 1) * 2
        assert (found[key] - weight).abs().max() <= step, key


# Heavy tails


def test_a_gate_sees_the_one_tensor_inside_with_heavy_tails(run, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tails = torch.distributions.StudentT(2.5)
    torch.manual_seed(0)
    value = {f"w{number}": torch.randn(64, 128, generator=generator) for number in range(20)}
    value["tails"] = tails.sample((64, 128)) * 0.01
    torch.save(value, tmp_path / "m.pth")
    rows = run("quantize", tmp_path / "m.pth", "-s", "int4-channel", "--json").json["tensors"]
    figures = {row["name"]: row["sqnr_db"] for row in rows}
    assert min(figures, key=figures.get) == "tails"
    assert figures["w0"] - figures["tails"] > 3
    assert run("quantize", tmp_path / "m.pth", "-s", "int4-channel", "--fail-under", "sqnr=14", "-f").exit_code == 0
    assert run("quantize", tmp_path / "m.pth", "-s", "int4-channel", "--fail-under", "sqnr-min=14", "-f").exit_code == 4


# Already quantized by another tool

QUANTIZED = {
    "int8": (lambda: torch.randint(-127, 128, (128, 64)).to(torch.int8), ".scale", torch.float32),
    "fp8": (lambda: weights(128, 64).to(torch.float8_e4m3fn), "_scale_inv", torch.float32),
    "packed": (lambda: torch.randint(0, 2**31, (128, 64)).to(torch.int32), "_scale", torch.bfloat16),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_weights_inside_quantized_by_another_tool_and_their_scales_are_left_alone(kind, run, there_and_back, tmp_path):
    make, suffix, dtype = QUANTIZED[kind]
    torch.manual_seed(0)
    scale = torch.rand(128, 64).to(dtype)  # large enough to be treated, were it a weight
    value = {"proj.weight": make(), f"proj.weight{suffix}": scale, "other.weight": weights(64, 64)}
    torch.save(value, tmp_path / "m.pth")
    rows = run("quantize", tmp_path / "m.pth", "-s", "int4", "--json").json["tensors"]
    reasons = {row["name"]: row["reason"] for row in rows}
    assert reasons[f"proj.weight{suffix}"] == "quantized by another tool"
    assert reasons["proj.weight"]
    assert reasons["other.weight"] is None
    found = load(there_and_back(tmp_path / "m.pth", "-s", "int4"))
    for key in ("proj.weight", f"proj.weight{suffix}"):
        assert same(found[key], value[key])


# Weights that lie on a grid


def test_weights_inside_that_lie_on_the_grid_of_a_scheme_come_back_almost_exactly(run, tmp_path):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (128, 8, 32), generator=generator)
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    step = torch.rand(128, 8, 1, generator=generator).bfloat16().float() * 0.01 + 0.001
    value = (codes - torch.randint(4, 12, (128, 8, 1), generator=generator)) * step.bfloat16().float()
    save_file({"w": value.reshape(128, 256)}, tmp_path / "m.safetensors")
    figures = {}
    for scheme in ("int4-g32-asym", "int4-g32", "int4-g128-asym"):
        row = run("quantize", tmp_path / "m.safetensors", "-s", scheme, "--json", "-f").json["tensors"][0]
        figures[scheme] = 999 if row["exact"] else row["sqnr_db"]
    assert figures["int4-g32-asym"] > 45
    assert max(figures["int4-g32"], figures["int4-g128-asym"]) < 30


# Folds of one ensemble


def test_folds_of_one_ensemble_are_compared_and_compressed_together(run, tmp_path):
    common = weights(64, 96, seed=80)
    for fold in range(5):
        value = {
            "encoder.weight": common + weights(64, 96, seed=81 + fold, sigma=0.0075),
            "rbf.weight": weights(70, 60),
        }
        save_file(value, tmp_path / f"fold_{fold}.safetensors")
    done = run("diff", tmp_path / "fold_0.safetensors", tmp_path / "fold_1.safetensors", "--json")
    rows = {row["name"]: row for row in done.json["tensors"]}
    assert rows["rbf.weight"]["status"] == "equal"
    assert 0.85 < rows["encoder.weight"]["cosine"] < 0.9
    folds = sorted(tmp_path.glob("fold_*.safetensors"))
    assert run("quantize", *folds, "--json").json["summary"]["done"] == 5
    stored = [load_safetensors(tmp_path / f"fold_{fold}.int8.safetensors") for fold in range(5)]
    codes = next(key for key in stored[0] if key.startswith("rbf.weight"))
    assert all(torch.equal(one[codes], stored[0][codes]) for one in stored)
