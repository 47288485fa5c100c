"""Hugging Face directories as models: small random ones, with a tokenizer of a few words, made by transformers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelzip_cli.errors import (
    BadData,
    BrokenCheckpoint,
    MissingExtra,
    ModelDoesNotRun,
    ModelzipError,
    UnsafeInput,
    UsageError,
    WrongArchitecture,
)
from modelzip_cli.recipe import Recipe
from modelzip_cli.running import extras
from modelzip_cli.running import hugging_face as module
from modelzip_cli.running.data import DataOptions, open_data
from modelzip_cli.running.inputs import Batch, Images
from modelzip_cli.running.ladder import Network, open_model
from modelzip_cli.running.model import Model
from modelzip_cli.single import Settings, compress_file
from tests.running.opening import written
from tests.test_report_schema import assert_is

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "film", "was", "is", "good", "bad", "fine")
CONTEXT, WIDTH = 12, 64
SMALL = {"vocab_size": len(WORDS), "max_position_embeddings": CONTEXT, "num_attention_heads": 2}
BERT = SMALL | {"hidden_size": WIDTH, "num_hidden_layers": 1, "intermediate_size": WIDTH}
REVIEWS = (("a good film", "pos"), ("the film was bad", "neg"), ("fine", "pos"), ("the film is a bad film", "neg"))


@pytest.fixture(scope="module")
def transformers(torchvision) -> Any:
    """The library, kept from the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def save(transformers, tmp_path_factory) -> Callable[..., Path]:
    """Write a directory with a random model of a class, and the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")

    def write(architecture: str, **settings: Any) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(architecture)
        kind = getattr(transformers, architecture)
        model = kind(kind.config_class(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))  # scores that differ
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def bert(save) -> Path:
    return save("BertForSequenceClassification", **BERT, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})


@pytest.fixture(scope="module")
def gpt2(save) -> Path:
    return save("GPT2LMHeadModel", vocab_size=len(WORDS), n_positions=CONTEXT, n_embd=WIDTH, n_layer=1, n_head=2)


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A table of texts with labels by name."""
    lines = (json.dumps({"text": text, "label": label}) for text, label in REVIEWS)
    return written(tmp_path / "reviews.jsonl", "\n".join(lines))


@pytest.fixture
def altered(bert, tmp_path) -> Callable[..., Path]:
    """A copy of the classifier with its configuration changed."""

    def alter(**changes: Any) -> Path:
        folder = Path(shutil.copytree(bert, tmp_path / "altered"))
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "-"}))
        return folder

    return alter


def refusal(folder: Path, error: type[ModelzipError], **network: object) -> str:
    """The one line that an attempt to open ends with."""
    with pytest.raises(ModelzipError) as caught:
        open_model(folder, Network(**network))
    assert type(caught.value) is error, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every(model: Model, path: Path) -> tuple[Batch, torch.Tensor]:
    """All examples as a batch, and the model's scores."""
    examples = open_data(str(path), model.wanted, DataOptions())
    batch = examples.batch(np.arange(len(examples)))
    with torch.no_grad():
        return batch, model.scores(batch)


def test_a_classifier_gives_the_scores_that_transformers_gives(transformers, bert, reviews):
    model = open_model(bert, Network())
    batch, scores = every(model, reviews)

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    inputs = tokenizer([text for text, _ in REVIEWS], padding=True, return_tensors="pt")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    with torch.no_grad():
        expected = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(batch.inputs[0], inputs["input_ids"])
    assert torch.equal(batch.inputs[1], inputs["attention_mask"])
    assert batch.labels.tolist() == [1, 0, 1, 0]
    assert torch.allclose(scores, expected, atol=1e-5)
    assert model.rung == "BertForSequenceClassification of transformers"
    assert (model.wanted.classes, model.wanted.context, model.wanted.positions) == (("neg", "pos"), CONTEXT, False)


def test_a_language_model_gives_the_scores_that_transformers_gives(transformers, gpt2, tmp_path):
    model = open_model(gpt2, Network())
    assert (model.wanted.positions, model.wanted.context) == (True, CONTEXT)
    assert model.module.lm_head.weight is model.module.transformer.wte.weight
    batch, scores = every(model, written(tmp_path / "text.txt", "the film is good a bad film was the fine film " * 5))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    with torch.no_grad():
        assert torch.allclose(scores, theirs(input_ids=batch.inputs[0]).logits, atol=1e-4)
    assert torch.equal(batch.inputs[0][:, 1:], batch.labels[:, :-1])


def test_published_names_without_the_prefix_of_the_class_fit(gpt2, tmp_path):
    folder = Path(shutil.copytree(gpt2, tmp_path / "gpt2"))
    tensors = load_file(folder / "model.safetensors")
    published = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    published["h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT)  # a mask, which older versions saved
    save_file(published, folder / "model.safetensors")
    ids = torch.arange(8)[None]
    inputs = (ids, torch.ones_like(ids))
    with torch.no_grad():
        assert torch.equal(open_model(folder, Network()).run(inputs), open_model(gpt2, Network()).run(inputs))


def test_roberta_takes_fewer_tokens_than_it_has_positions(save, reviews):
    folder = save("RobertaForSequenceClassification", **BERT, num_labels=2, pad_token_id=1)
    model = open_model(folder, Network())
    assert model.wanted.context == CONTEXT - 2
    longest = torch.full((1, CONTEXT - 2), 5)
    assert model.run((longest, torch.ones_like(longest))).shape == (1, 2)
    longer = torch.full((1, CONTEXT - 1), 5)
    with pytest.raises(ModelDoesNotRun, match=r"index .*out of (bounds|range)"):
        model.run((longer, torch.ones_like(longer)))


def test_names_of_older_versions_fit(bert, tmp_path):
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): name for name in tensors}
    old = {f"module.{older}": tensors[name] for older, name in renamed.items()}
    old["module.bert.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    save_file(old, folder / "model.safetensors")
    inputs = (torch.arange(8)[None], torch.ones(1, 8, dtype=torch.int64))
    with torch.no_grad():
        assert torch.equal(open_model(folder, Network()).run(inputs), open_model(bert, Network()).run(inputs))


@pytest.mark.parametrize("weights", ["file", "directory"])
def test_other_weights_run_with_a_directory_as_arch(bert, tmp_path, reviews, weights):
    output = tmp_path / ("small.safetensors" if weights == "file" else "small")
    source = bert / "model.safetensors" if weights == "file" else bert
    compress_file(source, output, Recipe(scheme="int8"), Settings(1), command="quantize")
    model = open_model(output, Network(str(bert)))
    _, scores = every(model, reviews)
    _, expected = every(open_model(bert, Network()), reviews)
    assert model.label == str(output)
    assert model.bytes < (bert / "model.safetensors").stat().st_size * 0.7
    assert not torch.equal(scores, expected)
    assert torch.allclose(scores, expected, atol=0.3)


def test_a_compressed_directory_has_its_configuration_with_it(bert, tmp_path, reviews):
    compress_file(bert, tmp_path / "small", Recipe(scheme="int8"), Settings(1), command="quantize")
    model = open_model(tmp_path / "small", Network())
    assert every(model, reviews)[1].shape == (4, 2)


def test_code_of_a_directory_is_never_run(altered, tmp_path):
    folder = altered(auto_map={"AutoModelForSequenceClassification": "modeling.Net"})
    written(folder / "modeling.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    message = refusal(folder, UnsafeInput)
    assert "its configuration asks for code that comes with it (auto_map); it was not run" in message
    assert "--arch file.py:Net" in message
    assert UnsafeInput.exit_code == 5
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_code_is_not_run_either(bert, tmp_path):
    folder = Path(shutil.copytree(bert, tmp_path / "own"))
    written(folder / "tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["tok.Own", None]}}))
    (folder / "tokenizer.json").unlink()
    written(folder / "tok.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "no vocabulary" in (message := refusal(folder, BadData)) or "without code of its own" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "someone/kernel@main"}},
        {"text_config": [{"_attn_implementation": "someone/kernel:layer"}]},
        {"experts_implementation": "someone/kernel"},
    ],
    ids=str,
)
def test_code_from_the_network_is_never_run(altered, changes):
    message = refusal(altered(**changes), UnsafeInput)
    assert "its configuration asks for code from the network" in message
    assert "someone/kernel" in message


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"architectures": "-"}, UsageError, "config.json names no architecture: give --arch file.py:Net"),
        ({"architectures": []}, UsageError, "config.json names no architecture"),
        ({"architectures": [3]}, UsageError, "config.json names no architecture"),
        ({"architectures": ["NoSuchModel"]}, UsageError, "has no NoSuchModel"),
        ({"architectures": ["logging"]}, UsageError, "has no logging"),
        ({"architectures": ["BertConfig"]}, UsageError, "has no BertConfig"),
        ({"architectures": ["Conv1D"]}, UsageError, "has no Conv1D"),
        ({"architectures": ["GPT2LMHeadModel"]}, ModelDoesNotRun, "transformers cannot build GPT2LMHeadModel"),
        ({"model_type": "-"}, ModelDoesNotRun, "transformers cannot build BertForSequenceClassification: ValueError"),
        ({"num_attention_heads": 7}, ModelDoesNotRun, "cannot build BertForSequenceClassification: ValueError"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(altered, changes, error, problem):
    folder = altered(**changes)
    message = refusal(folder, error)
    assert message.startswith(f"{folder}: ")
    assert problem in message


def test_weights_of_another_model_are_refused(bert, gpt2, altered):
    message = refusal(gpt2, WrongArchitecture, arch=str(bert))
    assert f"{gpt2}: does not fit BertForSequenceClassification of {bert}: " in message
    assert "missing: bert.embeddings." in message
    assert "unexpected: transformer." in message
    message = refusal(altered(num_labels="-", id2label={str(n): f"{n}" for n in range(5)}), WrongArchitecture)
    assert "classifier.weight is [2, 64], not [5, 64]" in message
    assert "The file has 2 outputs" in message
    assert "--arch-args" not in message


def test_without_the_library_its_extra_is_named(bert, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    message = refusal(bert, MissingExtra)
    assert "transformers is not installed; pip install 'modelzip[hf]'" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "\xff"])
def test_a_configuration_that_is_no_json_object_is_damaged(altered, text):
    folder = altered()
    (folder / "config.json").write_bytes(text.encode("latin1"))
    assert str(folder / "config.json") in refusal(folder, BrokenCheckpoint)


def images_of(tmp_path: Path, **config: Any) -> Images:
    """How pictures are prepared, by this configuration."""
    return module._images(written(tmp_path / "preprocessor_config.json", json.dumps(config)))


@pytest.mark.parametrize(
    ("config", "size", "crop"),
    [
        ({"size": {"height": 224, "width": 192}}, (224, 192), 1.0),
        ({"size": 224}, (224, 224), 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), 0.875),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, 224), 0.875),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, (256, 256), 1.0),
        ({}, None, 1.0),
    ],
)
def test_a_preprocessor_says_how_large_pictures_are(tmp_path, config, size, crop):
    images = images_of(tmp_path, **config)
    assert (images.size, images.crop) == (size, crop)


def test_a_preprocessor_says_how_pictures_are_normalised(tmp_path):
    images = images_of(tmp_path, image_mean=[0.5, 0.4, 0.3], image_std=[1, 1, 2])
    assert (images.mean, images.std, images.source) == ((0.5, 0.4, 0.3), (1.0, 1.0, 2.0), "preprocessor_config.json")
    assert images_of(tmp_path, image_mean=[0.5], image_std=[1], do_normalize=False).mean is None


@pytest.mark.parametrize(
    "config",
    [{"size": "large"}, {"size": {"longest_edge": 3}}, {"image_mean": "grey"}, {"image_std": 3}, {"crop_pct": [1]}],
    ids=str,
)
def test_a_preprocessor_that_says_nonsense_is_damaged(tmp_path, config):
    with pytest.raises(BrokenCheckpoint, match=r"preprocessor_config.json: no preprocessing of pictures: "):
        images_of(tmp_path, **config)


def test_a_model_of_pictures_takes_what_its_preprocessor_makes(transformers, save):
    folder = save(
        "ViTForImageClassification", **(BERT | {"image_size": 8, "patch_size": 4, "num_channels": 1}), num_labels=3
    )
    config = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    model = open_model(folder, Network())
    assert model.wanted.shape == (1, None, None)
    assert model.wanted.images == Images((8, 8), (0.5,), (0.25,), 1.0, "preprocessor_config.json")
    x = torch.rand(2, 1, 8, 8)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(model.run((x,)), theirs(pixel_values=x).logits, atol=1e-5)


def test_the_program_evaluates_a_directory(modelzip, bert, reviews):
    run = modelzip("eval", bert, "--data", reviews, "--reference", bert, "-j", "1", "--json")
    assert (run.exit_code, run.stderr) == (0, "")
    assert_is("evaluated", run.json)
    assert run.json["source"]["container"] == "hf-directory"
    after = run.json["evaluation"]["after"]
    assert (after["examples"], after["agreement"], after["kl"]) == (4, 1.0, 0.0)


def test_the_program_refuses_code_with_its_exit_code(modelzip, altered, reviews):
    run = modelzip("eval", altered(auto_map={"AutoModel": "net.Net"}), "--data", reviews, "--json")
    assert run.exit_code == 5
    assert_is("error", run.json)
    assert run.json["error"]["kind"] == "unsafe-input"


def test_long_texts_are_cut_with_a_warning(modelzip, bert, tmp_path):
    lines = [json.dumps({"text": text, "label": label}) for text, label in (*REVIEWS, ("a bad film " * 9, "neg"))]
    data = written(tmp_path / "long.jsonl", "\n".join(lines))
    run = modelzip("eval", bert, "--data", data, "-j", "1", "--json")
    assert run.json["warnings"] == [f"{data}: 1 of 5 texts were cut to the 12 tokens that the model takes"]


def test_a_directory_takes_no_arguments(bert):
    message = refusal(bert / "model.safetensors", UsageError, arch=str(bert), arguments={"num_labels": 3})
    assert "takes no --arch-args" in message


def test_models_are_modules_in_evaluation_mode(bert):
    model = open_model(bert, Network())
    assert isinstance(model.module, nn.Module)
    assert not any(part.training for part in model.module.modules())
