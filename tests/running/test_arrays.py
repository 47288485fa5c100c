from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modelzip_cli.errors import BadData, UsageError
from modelzip_cli.running.inputs import IGNORED, Images, Wanted
from tests.running.opening import dtypes, every, opened, saved, tokens

SAMPLES = Path(__file__).parents[2] / "sample_models"
NAN = float("nan")
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)  # [n, height, width, channels]


def message(path, wanted, **options) -> str:
    with pytest.raises((BadData, UsageError)) as caught:
        opened(path, wanted, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "shape", "kind", "positions"),
    [
        ("digits_test.npz", (1, 12, 12), "floats", False),
        ("digits_mlp_test.npz", (64,), "floats", False),
        ("docs_test.npz", (None,), "tokens", True),
        ("docstrings_test.npz", (64,), "tokens", False),
    ],
)
def test_the_test_data_of_the_sample_models_opens_as_it_is(name, shape, kind, positions):
    data = opened(SAMPLES / name, Wanted(kind=kind, shape=shape, context=64))
    rows = np.array([5, 0, 5])
    batch = data.batch(rows)
    with np.load(SAMPLES / name) as arrays:
        assert batch.inputs[0].tolist() == arrays["x"][rows].tolist()
        assert batch.labels.tolist() == arrays["y"][rows].tolist()
        assert (len(data), data.labels.dtype) == (len(arrays["x"]), arrays["y"].dtype)
    assert dtypes(data) == [torch.float32 if kind == "floats" else torch.int64, torch.int64]
    assert (data.labelled, data.a_label_a_position, data.warnings) == (True, positions, ())


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "i8", ">i4", "f2", "f4", "f8", ">f8"])
def test_numbers_of_all_kinds_are_floats_for_a_model_that_takes_floats(tmp_path, dtype):
    x = np.array([[0, 1], [1, 1]]).astype(dtype)
    data = opened(saved(tmp_path / "d.npz", x=x, y=np.array([0.0, 1.0])), Wanted(shape=(2,)))
    assert dtypes(data) == [torch.float32, torch.int64]
    assert every(data) == ([[[0, 1], [1, 1]]], [0, 1])


def test_an_npy_file_has_no_labels(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    data = opened(tmp_path / "x.npy")
    assert every(data) == ([np.eye(3).tolist()], None)
    assert not data.labelled


def test_the_arrays_of_the_file_are_not_changed_by_what_is_done_to_a_batch(tmp_path):
    data = opened(saved(tmp_path / "d.npz", x=np.ones((2, 3), np.float32)))
    for _ in range(2):
        x = data.batch(np.array([0, 1])).inputs[0]
        assert x.tolist() == [[1] * 3] * 2
        x.zero_()


@pytest.mark.parametrize(
    ("y", "problem"),
    [
        (np.array([0.0, 0.5]), "y is float64 with fractions; labels are whole numbers, 0 for the first class"),
        (np.array([0.0, np.nan]), "y is float64 with fractions; labels are whole numbers, 0 for the first class"),
        (np.array([0.0, 1e300]), "y is float64 with fractions; labels are whole numbers, 0 for the first class"),
        (np.array([0]), "x is [2, 3], but y is [1]: a label for each example"),
        (np.array(0), "x is [2, 3], but y is []: a label for each example"),
        (np.eye(2), "y is [2, 2], but labels are [2]; of one-hot rows store y.argmax(axis=1)"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, y, problem):
    assert message(saved(tmp_path / "d.npz", x=np.zeros((2, 3)), y=y), Wanted()) == problem


@pytest.mark.parametrize(
    ("x", "wanted", "problem"),
    [
        (
            np.zeros((4, 64)),
            (1, 8, 8),
            "examples are [n, 64], but the model takes [n, 1, 8, 8]; x.reshape(-1, 1, 8, 8) is that",
        ),
        (
            np.zeros((4, 8, 8, 3)),
            (3, 8, 8),
            "examples are [n, 8, 8, 3], but the model takes [n, 3, 8, 8]; x.transpose(0, 3, 1, 2) puts the channels "
            "first",
        ),
        (
            np.zeros((4, 9, 8, 3)),
            (3, None, 8),
            "examples are [n, 9, 8, 3], but the model takes [n, 3, *, 8]; x.transpose(0, 3, 1, 2) puts the channels "
            "first",
        ),
        (np.zeros((4, 65)), (64,), "examples are [n, 65], but the model takes [n, 64]"),
        (np.zeros((4, 64)), (None, 64), "examples are [n, 64], but the model takes [n, *, 64]"),
        (np.zeros(4), (1,), "x is [4]: examples lie along axis 0, their values along the others"),
    ],
)
def test_a_shape_that_the_model_does_not_take_is_shown_beside_that_which_it_does(tmp_path, x, wanted, problem):
    assert message(saved(tmp_path / "d.npz", x=x), Wanted(shape=wanted)) == problem


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mean", [None, MEAN, (0.4,)])
def test_bytes_are_pixels(tmp_path, channels_last, mean):
    std = mean and STD[: len(mean)]
    stored = PICTURES if channels_last else PICTURES.transpose(0, 3, 1, 2)
    data = opened(saved(tmp_path / "d.npz", x=stored), Wanted(shape=(3, 4, 6)), mean=mean, std=std)
    expected = PICTURES.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    if mean:
        expected = (expected - np.float32(mean).reshape(-1, 1, 1)) / np.float32(std).reshape(-1, 1, 1)
    x = data.batch(np.array([4, 1])).inputs[0]
    assert x.is_contiguous()
    assert np.array_equal(x.numpy(), expected[[4, 1]])
    warned = [warning.removeprefix(f"{data.label}: ") for warning in data.warnings]
    assert warned[0] == "x is uint8: taken as pixels, over 255; store it as float32 to have it taken as it is"
    assert warned[1:] == [
        "pixels are taken as 0..1: neither --mean and --std nor the model says how they are normalised"
    ] * (mean is None)


def test_the_option_goes_before_the_models_own_normalisation_and_floats_are_left_alone(tmp_path):
    own = Wanted(shape=(3, 4, 6), images=Images(mean=MEAN, std=STD, source="config.json"))
    bytes_, floats = (
        saved(tmp_path / "b.npz", x=PICTURES),
        saved(tmp_path / "f.npz", x=PICTURES.transpose(0, 3, 1, 2) / 255),
    )
    by_model = opened(bytes_, own)
    assert every(by_model) == every(opened(bytes_, Wanted(shape=(3, 4, 6)), mean=MEAN, std=STD))
    assert len(by_model.warnings) == 1
    assert every(opened(bytes_, own, mean=STD, std=MEAN)) == every(
        opened(bytes_, Wanted(shape=(3, 4, 6)), mean=STD, std=MEAN)
    )

    ready = opened(floats, own)
    assert np.allclose(ready.batch(np.arange(5)).inputs[0], PICTURES.transpose(0, 3, 1, 2) / 255)
    assert ready.warnings == (f"{floats}: x lies in 0..1 and is taken as it is; config.json names a mean: see --mean",)
    asked = opened(floats, own, mean=MEAN, std=STD)
    assert torch.allclose(asked.batch(np.arange(5)).inputs[0], by_model.batch(np.arange(5)).inputs[0], atol=1e-6)
    assert asked.warnings == ()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mean": (0.5,)}, "--mean and --std go together"),
        ({"std": (0.5,)}, "--mean and --std go together"),
        ({"mean": (), "std": ()}, "--mean and --std are finite numbers, one a channel, and no --std is 0 or less"),
        (
            {"mean": (0.5,), "std": (0,)},
            "--mean and --std are finite numbers, one a channel, and no --std is 0 or less",
        ),
        (
            {"mean": (NAN,), "std": (1,)},
            "--mean and --std are finite numbers, one a channel, and no --std is 0 or less",
        ),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, "--mean has 2 values and --std 1; give one a channel"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "FILE: 3 channels, but mean and std are of 2 (--mean and --std)"),
        ({"image_size": (0, 8)}, "--image-size: height and width are at least 1"),
    ],
)
def test_a_normalisation_that_is_none_is_a_usage_error(tmp_path, options, problem):
    path = saved(tmp_path / "d.npz", x=PICTURES)
    with pytest.raises(UsageError) as caught:
        opened(path, Wanted(shape=(3, 4, 6)), **options)
    assert str(caught.value).replace(str(path), "FILE") == problem


X = np.arange(12, dtype=np.uint16).reshape(3, 4)


def test_tokens_without_labels_are_labelled_with_the_token_after(tmp_path):
    data = opened(saved(tmp_path / "d.npz", x=X), tokens(context=3))
    assert every(data) == ([X[:, :-1].tolist()], X[:, 1:].tolist())
    assert dtypes(data) == [torch.int64, torch.int64]
    assert (data.labelled, data.a_label_a_position) == (True, True)


def test_tokens_for_a_model_that_is_no_language_model_stay_unlabelled(tmp_path):
    data = opened(saved(tmp_path / "d.npz", x=X), tokens(positions=False))
    assert every(data) == ([X.tolist()], None)


def test_a_model_that_takes_two_inputs_gets_a_mask(tmp_path):
    y = np.array([1, 0, 1])
    assert every(opened(saved(tmp_path / "d.npz", x=X, y=y), tokens(inputs=2))) == (
        [X.tolist(), [[1] * 4] * 3],
        [1, 0, 1],
    )
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    own = saved(tmp_path / "m.npz", x=X, y=y, attention_mask=mask)
    assert every(opened(own, tokens(inputs=2))) == ([X.tolist(), mask.tolist()], [1, 0, 1])
    assert every(opened(own, tokens())) == ([X.tolist()], [1, 0, 1])
    shifted = opened(saved(tmp_path / "s.npz", x=X, attention_mask=mask), tokens(inputs=2))
    after = np.where(mask[:, 1:], X[:, 1:].astype(int), IGNORED)
    assert every(shifted) == ([X[:, :-1].tolist(), mask[:, :-1].tolist()], after.tolist())


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": X.astype(float)}, "x is float64 [3, 4], but the model takes tokens: integers [n, time]"),
        ({"x": X[:, :, None]}, "x is uint16 [3, 4, 1], but the model takes tokens: integers [n, time]"),
        ({"x": X[:, :1]}, "x is [3, 1]: one token has none after it to be its label"),
        ({"x": X, "y": X[:, 1:]}, "y is [3, 3], neither [n] nor [3, 4] as x; of one-hot rows store y.argmax(axis=1)"),
        ({"x": X, "attention_mask": X[1:]}, "attention_mask is uint16 [2, 4], but x [3, 4]"),
        ({"x": X, "attention_mask": X / 2}, "attention_mask is float64 [3, 4], but x [3, 4]"),
        ({"x": X, "y": X}, "4 tokens, but the model takes at most 2; cut them: x[:, :2]"),
        ({"x": X[:, :3], "y": X[:, :3]}, "3 tokens, but the model takes at most 2; cut them: x[:, :2]"),
        ({"x": X[:, :2], "y": X[:, :2]}, None),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, arrays, problem):
    path, wanted = saved(tmp_path / "d.npz", **arrays), tokens(context=2)
    if problem is None:
        opened(path, wanted)
    else:
        assert message(path, wanted) == problem


def test_a_fingerprint_tells_content_and_preparation_apart(tmp_path):
    pixels = saved(tmp_path / "d.npz", x=PICTURES)
    (tmp_path / "other.npz").write_bytes(pixels.read_bytes())
    wanted = Wanted(shape=(3, 4, 6))
    first = opened(pixels, wanted).fingerprint
    assert len(first) == 64
    assert opened(pixels, wanted).fingerprint == opened(tmp_path / "other.npz", wanted).fingerprint == first
    others = {
        opened(pixels, wanted, mean=MEAN, std=STD).fingerprint,
        opened(pixels, wanted, mean=MEAN, std=MEAN).fingerprint,
        opened(saved(tmp_path / "o.npz", x=PICTURES + np.uint8(1)), wanted).fingerprint,
        first,
    }
    assert len(others) == 4
