from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelzip_cli.errors import BadData, MissingExtra, ModelzipError, UsageError
from modelzip_cli.running.images import resize_and_crop
from modelzip_cli.running.inputs import Images, Wanted
from tests.running.opening import opened, tokens

RNG = np.random.default_rng(0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNNORMALISED = "pixels are taken as 0..1: neither --mean and --std nor the model says how they are normalised"


def picture(path: Path, height: int = 6, width: int = 6, mode: str = "RGB", **options) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    Image.fromarray(values.squeeze(), mode if len(mode) > 1 else "L").save(path, **options)
    return path


def told(data) -> list[str]:
    """Its warnings, without its path."""
    return [warning.removeprefix(f"{data.label}: ") for warning in data.warnings]


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for name in ("zebra/1.png", "Ant/b.JPG", "Ant/deep/er/a.png", "über/x.bmp"):
        picture(tmp_path / name)
    data = opened(tmp_path, mean=MEAN, std=STD)
    assert data.classes == ("Ant", "zebra", "über")
    assert [data.place(row) for row in range(4)] == [
        str(tmp_path / name) for name in ("Ant/b.JPG", "Ant/deep/er/a.png", "zebra/1.png", "über/x.bmp")
    ]
    assert data.labels.tolist() == data.batch(np.arange(4)).labels.tolist() == [0, 0, 1, 2]
    assert data.batch(np.array([3, 0])).labels.dtype == torch.int64
    assert (data.labelled, data.warnings) == (True, ())


def test_a_flat_folder_has_no_labels(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.png")
    (tmp_path / "notes").mkdir()
    data = opened(tmp_path)
    assert [Path(data.place(row)).name for row in range(2)] == ["a.png", "b.png"]
    assert (data.labelled, data.labels, data.classes, data.batch(np.array([0])).labels) == (False, None, None, None)
    assert told(data) == ["ignored, as no pictures, hidden, or beside the classes: 1", UNNORMALISED]


def test_the_models_own_numbers_of_classes_are_used_where_it_knows_the_names(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / name / "1.png")
    data = opened(tmp_path, Wanted(classes=("dog", "eel", "cat")))
    assert (data.labels.tolist(), data.classes) == ([2, 0], ("dog", "eel", "cat"))
    assert told(data) == [UNNORMALISED]
    other = opened(tmp_path, Wanted(classes=("n01", "n02")))
    assert (other.labels.tolist(), other.classes) == ([0, 1], ("cat", "dog"))
    assert "the classes are not called as in the model (n01, n02)" in told(other)[0]


def test_what_is_no_picture_is_passed_over_and_links_that_lead_back_are_not_followed(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a" / ".hidden.png")
    picture(tmp_path / ".ipynb_checkpoints" / "1.png")
    picture(tmp_path / "beside.png")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "root").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")
    picture(tmp_path / "b" / "real" / "1.png")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "beside.png")
    (tmp_path / "c").mkdir()
    data = opened(tmp_path)
    names = [os.path.relpath(data.place(row), tmp_path) for row in range(len(data))]
    assert names == ["a/1.png", "b/link.png", "b/real/1.png"]
    assert told(data)[:2] == [
        "classes without pictures, which have numbers all the same: c",
        "ignored, as no pictures, hidden, or beside the classes: 8",
    ]
    assert data.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.txt"], "no pictures in this folder or in folders of it (.jpg, .jpeg, "),
        (["config.json"], "a model, not data"),
        (["train/cat/1.png", "val/cat/1.png"], "holds train, val; give one of these folders"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, names, problem):
    for name in names:
        picture(tmp_path / name, format="png")
    with pytest.raises(UsageError) as caught:
        opened(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: {problem}")


def reference(path: Path, size: tuple[int, int], crop: float, mean, std) -> np.ndarray:
    """torchvision's Resize (shorter side, bicubic), CenterCrop, ToTensor and Normalize, by hand."""
    image = Image.open(path).convert("RGB")
    target = int(size[0] / crop)  # square
    width, height = image.size
    if width <= height:
        resized = image.resize((target, int(target * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(target * width / height), target), Image.Resampling.BICUBIC)
    values = np.asarray(resized)
    top, left = round((values.shape[0] - size[0]) / 2.0), round((values.shape[1] - size[1]) / 2.0)
    values = values[top : top + size[0], left : left + size[1]].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (values - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 61), (90, 33), (8, 9), (16, 16)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_pictures_are_prepared_as_torchvision_does(tmp_path, height, width, crop):
    path = picture(tmp_path / "1.png", height, width)
    own = Wanted(images=Images((16, 16), MEAN, STD, crop))
    data = opened(tmp_path, own)
    x = data.batch(np.array([0])).inputs[0]
    assert (x.dtype, x.shape, x.is_contiguous()) == (torch.float32, (1, 3, 16, 16), True)
    assert np.array_equal(x[0].numpy(), reference(path, (16, 16), crop, MEAN, STD))
    assert data.warnings == ()


@given(*[st.integers(1, 90)] * 4, st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.5]))
def test_a_fitted_picture_has_the_size_that_is_asked_for_and_no_border(height, width, to_height, to_width, crop):
    white = Image.new("L", (width, height), 255)
    fitted = resize_and_crop(white, (to_height, to_width), crop)
    assert (fitted.height, fitted.width) == (to_height, to_width)
    assert fitted.getextrema() == (255, 255)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".ppm", ".bmp", ".tif", ".webp"])
def test_each_kind_of_file_is_decoded(tmp_path, suffix):
    path = picture(tmp_path / f"1{suffix}", 5, 7)
    x = opened(tmp_path).batch(np.array([0])).inputs[0]
    assert np.array_equal(x[0].permute(1, 2, 0).numpy() * 255, np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize(("channels", "wanted"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_are_converted_to_the_channels_of_the_model(tmp_path, mode, channels, wanted):
    with Image.open(picture(tmp_path / "source.png", 5, 5)) as source:
        converted = source.convert(mode)
    (tmp_path / "source.png").unlink()
    converted.save(tmp_path / "1.tif")
    x = opened(tmp_path, Wanted(shape=(channels, None, None))).batch(np.array([0])).inputs[0]
    expected = np.asarray(converted.convert(wanted)).reshape(5, 5, channels).transpose(2, 0, 1)
    assert np.array_equal(x[0].numpy(), expected.astype(np.float32) / np.float32(255))


def test_the_orientation_of_a_photograph_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture(tmp_path / "1.png", 4, 8, exif=exif)
    assert opened(tmp_path).batch(np.array([0])).inputs[0].shape == (1, 3, 4, 8)


def test_the_size_is_that_of_the_option_else_of_the_configuration_else_of_the_shape(tmp_path):
    picture(tmp_path / "1.png", 30, 40)

    def shape(wanted=None, **options):
        return tuple(opened(tmp_path, wanted, **options).batch(np.array([0])).inputs[0].shape[1:])

    assert shape(Wanted(images=Images((8, 8))), image_size=(10, 12)) == (3, 10, 12)
    assert shape(Wanted(shape=(3, None, None), images=Images((8, 8)))) == (3, 8, 8)
    assert shape(Wanted(shape=(1, 9, 7))) == (1, 9, 7)
    assert shape() == (3, 30, 40)
    with pytest.raises(BadData, match=r"examples are \[n, 3, 9, 9\], but the model takes \[n, 3, 8, 8\]"):
        shape(Wanted(shape=(3, 8, 8)), image_size=(9, 9))


def test_pictures_of_several_sizes_need_one(tmp_path):
    first, _, odd = (picture(tmp_path / f"{n}.png", 6, 6 + (n == 3)) for n in (1, 2, 3))
    with pytest.raises(BadData) as caught:
        opened(tmp_path)
    assert str(caught.value) == (f"{first} is 6 x 6 (height x width), {odd} 6 x 7; --image-size makes them one size")


@pytest.mark.parametrize(
    ("wanted", "error", "problem"),
    [
        (tokens(), UsageError, "a folder of pictures, but the model takes tokens"),
        (Wanted(shape=(2, 8, 8)), BadData, "the model takes 2 channels, but pictures have 1, 3 or 4"),
        (Wanted(shape=(64,)), BadData, "examples are [n, 3, 6, 6], but the model takes [n, 64]"),
        (
            Wanted(shape=(1, 6, 6), images=Images(mean=MEAN, std=STD)),
            UsageError,
            "1 channels, but mean and std are of 3 (the model's configuration)",
        ),
    ],
)
def test_a_model_that_takes_no_such_pictures_is_refused(tmp_path, wanted, error, problem):
    picture(tmp_path / "1.png")
    with pytest.raises(error) as caught:
        opened(tmp_path, wanted)
    assert str(caught.value) == f"{tmp_path}: {problem}"


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated(**options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, **options)
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def deep() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(stream, "png")
    return stream.getvalue()


def line() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (200_000, 1)).save(stream, "png")
    return stream.getvalue()


BAD = {
    "a cut PNG": (truncated(format="png"), "image file is truncated"),
    "a cut JPEG": (truncated(format="jpeg"), "image file is truncated"),
    "a cut header": (truncated(format="png")[:20], ""),
    "text": (b"<html>", "no picture that Pillow knows"),
    "nothing": (b"", "no picture that Pillow knows"),
    "a bomb": (bomb(10_000, 10_000), "exceeds limit of 89478485 pixels"),
    "a large bomb": (bomb(100_000, 100_000), "exceeds limit of 178956970 pixels"),
    "16 bits": (deep(), "has more than 8 bits a channel (I;16); convert it"),
    "a line": (line(), "1 x 200000 would become 600 x 120000000 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_cannot_be_read_is_named_when_its_batch_is_read(tmp_path, name):
    content, problem = BAD[name]
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(content)
    data = opened(tmp_path, image_size=(600, 600))
    assert len(data) == 2
    data.batch(np.array([0]))
    with pytest.raises(BadData) as caught:
        data.batch(np.array([0, 1, 0]))
    assert str(caught.value).startswith(f"{tmp_path / '2.png'}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_skip_bad_they_are_left_out_from_the_start_and_counted(tmp_path):
    for number, (content, _) in enumerate(BAD.values()):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number}.png").write_bytes(content)
    for name in ("a/1", "b/55", "c/1"):
        picture(tmp_path / f"{name}.png")
    data = opened(tmp_path, image_size=(600, 600), skip_bad=True)
    assert [os.path.relpath(data.place(row), tmp_path) for row in range(len(data))] == [
        "a/1.png",
        "b/55.png",
        "c/1.png",
    ]
    assert data.batch(np.arange(3)).labels.tolist() == data.labels.tolist() == [0, 1, 2]
    assert told(data)[-1] == f"left out, as they cannot be read: {len(BAD)} pictures, first {tmp_path / 'b' / '0.png'}"
    assert data.fingerprint != opened(tmp_path, image_size=(600, 600)).fingerprint


def test_with_skip_bad_one_picture_has_to_be_left(tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(BadData, match="none of its pictures can be read"):
        opened(tmp_path, skip_bad=True)


def test_a_name_that_could_harm_a_terminal_is_shown_harmless(tmp_path):
    (tmp_path / "\x1b[31m\udc80.png").write_bytes(b"x")
    data = opened(tmp_path, image_size=(8, 8))
    with pytest.raises(BadData) as caught:
        data.batch(np.array([0]))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_a_fingerprint_tells_files_labels_and_preparation_apart(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png")

    def prints(wanted=None, **options):
        return opened(tmp_path, wanted, **options).fingerprint

    first = prints()
    assert prints() == first
    others = [prints(image_size=(8, 8)), prints(mean=MEAN, std=STD), prints(Wanted(classes=("b", "a"))), first]
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert len({*others, prints()}) == 5


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "1.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught:
        opened(tmp_path)
    assert str(caught.value) == f"{tmp_path}: PIL is not installed; pip install 'modelzip[images]'"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(ModelzipError, match=r"a: cannot read: Permission denied"):
        opened(tmp_path)
