import json
import shutil

import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from tests import checkpoints


def test_inspect_describes_a_trainer_checkpoint(modelzip, sample):
    found = modelzip("inspect", sample("digits_mlp.pth"), "--json").json
    assert found["source"]["state_dict"] == "model_state_dict"
    assert found["source"]["parameters"] == 12060
    assert found["dtypes"] == {"f32": {"tensors": 6, "parameters": 12060, "bytes": 48240}}
    assert found["extras"]["epoch"] == "30"
    beside = [tensor for tensor in found["tensors"] if not tensor["weights"]]
    assert {tensor["name"].split(".")[0] for tensor in beside} == {"optimizer_state_dict"}


def test_inspect_groups_layers_and_keeps_odd_ones_apart(modelzip, tmp_path):
    weights = {f"layers.{i}.q_proj.weight": torch.zeros(64, 64) for i in range(12)}
    weights |= {f"layers.{i}.k_proj.weight": torch.zeros(64, 64) for i in range(12)}
    weights["layers.7.q_proj.weight"] = torch.zeros(32, 64)
    save_file(weights, tmp_path / "m.safetensors")
    text = modelzip("inspect", "m.safetensors").stdout
    assert "{0..6,8..11}.q_proj.weight" in text
    assert "{0..11}.k_proj.weight" in text
    assert "7.q_proj.weight" in text


def test_inspect_shows_the_schemes_of_a_compressed_file(modelzip, sample):
    modelzip("quantize", sample("docs_lm.safetensors"), "-s", "int4", "-o", "s.safetensors")
    found = modelzip("inspect", "s.safetensors", "--json").json
    assert found["source"]["compressed"] is True
    assert found["manifest"]["recipe"] == {"scheme": "int4-g128", "layout": "native"}
    assert "int4-g128 of bf16" in modelzip("inspect", "s.safetensors").stdout


def test_restore_gives_back_nesting_values_and_their_types(modelzip, tmp_path):
    source = checkpoints.trainer_pth(tmp_path / "trainer.pth")
    modelzip("quantize", source, "-o", "small.safetensors")
    assert modelzip("restore", "small.safetensors").exit_code == 0
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "small.restored.pth", weights_only=True)
    for name, value in checkpoints.trainer_values().items():
        if not isinstance(value, torch.Tensor) and not _holds_tensors(value):
            assert (name in after, after.get(name)) == (True, before[name])
            assert json.dumps(_types(after[name])) == json.dumps(_types(before[name]))


def _holds_tensors(value):
    if isinstance(value, dict):
        return any(_holds_tensors(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, torch.Tensor)


def _types(value):
    if isinstance(value, dict):
        return [type(value).__name__, [[_types(key), _types(item)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_types(item) for item in value]]
    return type(value).__name__


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_restore_writes_another_dtype(modelzip, sample, tmp_path, dtype):
    source = sample("docs_lm.safetensors")
    assert modelzip("restore", source, "--dtype", dtype, "-o", "cast.safetensors").exit_code == 0
    before, after = load_safetensors(source), load_safetensors(tmp_path / "cast.safetensors")
    wanted = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert all(checkpoints.same(after[name], tensor.to(wanted)) for name, tensor in before.items())


def test_restore_converts_a_torch_file_to_safetensors(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    assert modelzip("restore", source, "-o", "m.safetensors").exit_code == 0
    before, after = torch.load(source, weights_only=True), load_safetensors(tmp_path / "m.safetensors")
    assert before.keys() == after.keys()
    assert all(checkpoints.same(before[name], after[name]) for name in before)


def test_restore_refuses_more_than_it_may_write(modelzip, sample, tmp_path):
    modelzip("quantize", sample("digits_cnn.pth"), "-o", "s.safetensors")
    run = modelzip("restore", "s.safetensors", "--max-output-size", "100kB")
    assert run.exit_code == 2
    assert "--max-output-size allows more" in run.stderr


def test_diff_tells_equal_from_close_from_missing(modelzip, sample, tmp_path):
    source = sample("docs_lm.safetensors")
    other = load_safetensors(source)
    del other["norm.bias"]
    other["extra"] = torch.zeros(3)
    other["tok.weight"] = other["tok.weight"] * 1.01
    save_file(other, tmp_path / "other.safetensors")
    found = modelzip("diff", source, "other.safetensors", "--json").json
    status = {row["name"]: row["status"] for row in found["tensors"]}
    assert status.pop("tok.weight") == "differs"
    assert set(status.values()) == {"equal"}
    assert found["only_in"] == {"source": ["norm.bias"], "other": ["extra"]}
    assert modelzip("diff", source, "other.safetensors", "--fail-under", "sqnr-min=60").exit_code == 4
    assert modelzip("diff", source, source, "--fail-under", "sqnr-min=60").exit_code == 0


def test_diff_compares_integers_by_element(modelzip, tmp_path):
    save_file({"i": torch.arange(10)}, tmp_path / "a.safetensors")
    save_file({"i": torch.arange(10).clamp(max=7)}, tmp_path / "b.safetensors")
    (row,) = modelzip("diff", "a.safetensors", "b.safetensors", "--json").json["tensors"]
    assert (row["status"], row["changed"]) == ("differs", 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_verify_finds_a_changed_byte_and_names_the_tensor(modelzip, sample, tmp_path, suffix):
    modelzip("quantize", sample("digits_cnn.pth"), "-o", f"s{suffix}")
    good = modelzip("verify", f"s{suffix}", "--json")
    assert (good.exit_code, good.json["bad"], good.json["checked"]) == (0, [], 56)
    data = bytearray((tmp_path / f"s{suffix}").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad").with_suffix(suffix).write_bytes(data)
    bad = modelzip("verify", f"bad{suffix}")
    assert bad.exit_code == 1
    assert "does not match its checksum" in bad.stderr
    assert modelzip("restore", f"bad{suffix}", "-o", "x.pth").exit_code == 1
    assert not (tmp_path / "x.pth").exists()


def test_verify_against_another_source_says_so(modelzip, sample, tmp_path):
    source = sample("digits_cnn.pth")
    modelzip("quantize", source, "-s", "int4-mse", "-o", "s.safetensors")
    assert modelzip("verify", "s.safetensors", "--against", source).exit_code == 0
    other = shutil.copy(sample("digits_mlp.pth"), tmp_path / "other.pth")
    run = modelzip("verify", "s.safetensors", "--against", other)
    assert run.exit_code == 1
    assert "was made from" in run.stderr


def test_schemes_lists_explains_and_shows_the_defaults(modelzip):
    listed = modelzip("schemes", "--json").json["schemes"]
    assert {"keep", "fp16", "int2 ... int8"} <= {line["name"] for line in listed}
    assert "zero_point" in modelzip("schemes", "int").stdout
    assert modelzip("schemes", "int4-mse-g64", "--json").json["canonical"] == "int4-g64-mse"
    assert "router" in modelzip("schemes", "--defaults").stdout
    assert modelzip("schemes", "flaot").exit_code == 2


def test_markdown_and_verbose_reports(modelzip, sample):
    run = modelzip("quantize", sample("digits_mlp.pth"), "--format", "md", "-v")
    assert run.stdout.startswith("### ")
    assert run.stdout.count("\n| layers") == 6


def test_the_report_is_ascii_where_the_terminal_is(installed, sample):
    run = installed("quantize", sample("digits_mlp.pth"), env={"PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert run.exit_code == 0
    assert run.stdout_bytes.isascii()
    assert "#####" in run.stdout
