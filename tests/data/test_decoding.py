"""One image file: depth, channels, frames, alpha, turning and format are read from what it holds; faults name the file."""

import warnings

import numpy as np
import pytest
from made_files import chunk, png, tiff
from PIL import Image

from sag.data import FolderImages, from_values
from sag.data.decoding import centre_crop

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
DEEP = np.random.default_rng(0).integers(0, 65536, (6, 9, 3), np.uint16)


def exif(orientation):
    found = Image.Exif()
    found[0x112] = orientation
    return found


def transparent(mode="RGBA"):
    image = Image.fromarray(RGB).convert("RGBA")
    image.putpixel((2, 3), (1, 2, 3, 254))
    return image.convert(mode)


def two_frames(path, kind):
    Image.fromarray(RGB).save(path, kind, save_all=True, append_images=[Image.fromarray(255 - RGB)])


TRAINING = {"size": [6, 9]}
VALUES = {"size": [6, 9], "value_range": [0, 65535]}
REFUSED = {
    "16-bit RGB PNG": (
        lambda p: p.write_bytes(png(DEEP, 16)),
        TRAINING,
        r"has 3 channels of 16 bits; .*uint16 \(N, H, W, 3\) in an npz",
    ),
    "16-bit RGB PNG, scored": (lambda p: p.write_bytes(png(DEEP, 16)), {}, "has 3 channels of 16 bits"),
    "16-bit RGB PNG with a range": (lambda p: p.write_bytes(png(DEEP, 16)), VALUES, "has 3 channels of 16 bits"),
    "16-bit RGB TIFF": (lambda p: p.write_bytes(tiff(DEEP)), TRAINING, "has 3 channels of 16 bits"),
    "16-bit grey PNG with alpha": (lambda p: p.write_bytes(png(DEEP[..., :2], 16)), VALUES, "has 2 channels of 16 bits"),
    "12 bits without a range": (
        lambda p: p.write_bytes(png(DEEP[..., :1] // 16, 16)),
        TRAINING,
        "more than 8 bits; .*value_range",
    ),
    "4 bits with a range": (
        lambda p: p.write_bytes(png(DEEP[..., :1] % 16, 4)),
        VALUES,
        "has mode L of 4 bits; with value_range",
    ),
    "colour with a range": (lambda p: Image.fromarray(RGB).save(p), VALUES, "has mode RGB of 8 bits; with value_range"),
    "signed 8 bits": (lambda p: p.write_bytes(tiff(RGB[..., :1].view(np.int8))), VALUES, "signed 8-bit values"),
    "white is zero": (lambda p: p.write_bytes(tiff(DEEP[..., :1], photometric=0)), VALUES, "stores white as 0"),
    "a fourth channel": (
        lambda p: p.write_bytes(tiff(np.zeros((6, 9, 4), np.uint8), extra=0)),
        TRAINING,
        "has 4 channels; expected",
    ),
    "alpha": (lambda p: transparent().save(p), TRAINING, "has mode RGBA; expected .* without transparent pixels"),
    "grey alpha": (lambda p: transparent("LA").save(p), TRAINING, "has mode LA; expected"),
    "a transparent colour": (
        lambda p: Image.fromarray(RGB).save(p, transparency=tuple(RGB[1, 1].tolist())),
        TRAINING,
        "transparent pixels",
    ),
    "a transparent 2-bit grey": (
        lambda p: p.write_bytes(png(DEEP[..., :1] % 4, 2, None, chunk(b"tRNS", b"\0\2"))),
        TRAINING,
        "transparent pixels",
    ),
    "frames of a PNG": (lambda p: two_frames(p, "PNG"), {}, "holds 2 images; save each in a file of its own"),
    "frames of a GIF": (lambda p: two_frames(p, "GIF"), TRAINING, "holds 2 images"),
    "frames of a TIFF": (lambda p: two_frames(p, "TIFF"), TRAINING, "holds 2 images"),
    "frames of a WebP": (lambda p: two_frames(p, "WEBP"), TRAINING, "holds 2 images"),
    "a JPEG named PNG, scored": (
        lambda p: Image.fromarray(RGB).save(p, "JPEG"),
        {},
        r"is not a PNG: .* \(its content is JPEG\)",
    ),
    "a lossy WebP named PNG, scored": (lambda p: Image.fromarray(RGB).save(p, "WEBP"), {}, "is not a PNG"),
    "a turned PNG, scored": (
        lambda p: Image.fromarray(RGB).save(p, exif=exif(6)),
        {},
        r"has EXIF orientation 6",
    ),
    "NaN": (lambda p: p.write_bytes(tiff(np.full((6, 9, 1), np.nan, np.float32))), VALUES, "the values are not all finite"),
    "empty": (lambda p: p.write_bytes(b""), TRAINING, "is not a readable image"),
    "another format": (lambda p: Image.fromarray(RGB).save(p, "JPEG2000"), TRAINING, "its format is not supported"),
    "truncated": (lambda p: p.write_bytes(png(RGB)[:-30]), TRAINING, "is not a readable image"),
    "more pixels than Pillow takes": (
        lambda p: Image.new("1", (13500, 13500)).save(p),
        TRAINING,
        r"more than 178,956,970 pixels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_right_is_refused_by_name(tmp_path, case):
    make, options, message = REFUSED[case]
    make(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(ValueError, match=message) as caught:
            FolderImages(tmp_path, **options).read(0, 1)
    assert str(tmp_path / "x.png") in str(caught.value)


def test_a_flipped_byte_of_a_png_is_found(tmp_path):
    content = bytearray(png(RGB))
    content[-20] ^= 1
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.png is not a readable image \(broken PNG file"):
        FolderImages(tmp_path)


def test_opaque_alpha_is_dropped(tmp_path):
    for i, mode in enumerate(("RGBA", "LA")):
        Image.fromarray(RGB).convert(mode).save(tmp_path / f"{i}.png")
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    for options in ({}, TRAINING):
        assert np.array_equal(FolderImages(tmp_path, **options).read(0, 2), [RGB, np.repeat(grey[..., None], 3, 2)])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_exif_data_says(tmp_path, orientation):
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:20, :30] = 255  # white in the corner that is to be shown at the top left
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # Pillow's numbers of the turns that undo it
    stored = Image.fromarray(photo) if undo is None else Image.fromarray(photo).transpose(Image.Transpose(undo))
    if orientation in (6, 8):
        stored = Image.fromarray(photo).transpose(Image.Transpose({6: 2, 8: 4}[orientation]))
    stored.save(tmp_path / "x.jpg", quality=95, exif=exif(orientation))
    found = FolderImages(tmp_path, size=[40, 60]).read(0, 1)[0].astype(int)
    assert np.abs(found - photo).max() < 60
    assert found[5, 5].min() > 200


def test_a_turn_that_is_stated_behind_the_pixels_is_seen(tmp_path):
    content = png(np.ascontiguousarray(np.rot90(RGB)))
    end = content.index(b"IEND") - 4
    stated = exif(6).tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "x.png").write_bytes(content[:end] + chunk(b"eXIf", stated) + content[end:])
    assert np.array_equal(FolderImages(tmp_path, **TRAINING).read(0, 1)[0], RGB)
    with pytest.raises(ValueError, match=r"x\.png has EXIF orientation"):
        FolderImages(tmp_path)


def test_exif_data_that_cannot_be_read_turns_nothing(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=b"Exif\0\0nothing of the kind")
    assert np.array_equal(FolderImages(tmp_path, **TRAINING).read(0, 1)[0], RGB)


def test_a_cameras_jpeg_with_a_preview_counts_as_its_jpeg(tmp_path):
    photo = Image.new("RGB", (16, 16), (200, 100, 50))
    photo.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert Image.open(tmp_path / "x.jpg").format == "MPO"
    assert abs(int(FolderImages(tmp_path, size=16).read(0, 1).mean()) - 116) < 3


@pytest.mark.parametrize("order", "<>")
def test_values_are_those_of_the_file(tmp_path, order):
    rng = np.random.default_rng(0)
    unsigned = [np.uint32] if order == "<" else []  # Pillow reads no others
    for dtype in (np.uint8, np.uint16, np.int16, np.int32, np.float32, *unsigned):
        values = rng.integers(0, 100, (6, 9, 1)).astype(dtype)
        (tmp_path / "x.tif").write_bytes(tiff(values, order=order))
        found = FolderImages(tmp_path, size=[6, 9], value_range=[-5, 105]).read(0, 1)[0]
        assert np.array_equal(found, from_values(values, [-5, 105]))


@pytest.mark.parametrize(("dtype", "low"), [(np.uint32, 2**31 + 10**6), (np.int32, 10**9), (np.int32, -(10**9))])
def test_large_whole_numbers_are_not_rounded(tmp_path, dtype, low):
    values = (low + np.random.default_rng(0).integers(0, 100, (6, 9, 1))).astype(dtype)
    (tmp_path / "x.tif").write_bytes(tiff(values))
    found = FolderImages(tmp_path, size=[6, 9], value_range=[low, low + 100]).read(0, 1)[0]
    assert np.array_equal(found, from_values(values, [low, low + 100]))


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("size"), KeyError(0), RuntimeError("a\nb")])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    Image.fromarray(RGB).save(tmp_path / "x.png")
    source = FolderImages(tmp_path)
    monkeypatch.setattr(Image.Image, "convert", load)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ValueError, match=r"x\.png is not a readable image \([^\n]+\)$"):
        source.read(0, 1)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refused(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    Image.fromarray(RGB).save(tmp_path / "x.png")
    source = FolderImages(tmp_path)
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ValueError, match=r"x\.png cannot be read \(Permission denied\)"):
        source.read(0, 1)


def test_adm_crop_halves_by_box_and_takes_the_centre(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    rows = (wide.astype(int).reshape(64, 48, 2, 3).sum(2) + 1) // 2  # Pillow rounds after each direction
    expected = ((rows.reshape(32, 2, 48, 3).sum(1) + 1) // 2)[:, 8:40]
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(wide), 32, 32)), expected)
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide[:40]).convert("L").save(tmp_path / "b.jpg")
    source = FolderImages(tmp_path, size=32)
    assert source.shape == (2, 32, 32, 3)
    assert np.array_equal(source.read(0, 2)[0], expected)


def test_adm_crop_resizes_to_the_short_side_by_bicubic():
    ramp = np.repeat(np.linspace(0, 250, 100).astype(np.uint8)[None, :, None], 75, 0).repeat(3, 2)
    cropped = np.asarray(centre_crop(Image.fromarray(ramp), 50, 50))
    whole = np.asarray(Image.fromarray(ramp).resize((67, 50), Image.Resampling.BICUBIC))
    assert np.array_equal(cropped, whole[:, 8:58])
