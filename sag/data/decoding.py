"""One image file: what it holds, read from its content and not from its name, and its pixels as levels."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from sag.data.levels import Images, from_values

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_CHANNELS, _TIFF_KIND = 258, 262, 277, 339
_UNSIGNED, _SIGNED = 1, 2  # of _TIFF_KIND
_WHITE_IS_ZERO = 0  # of _TIFF_PHOTOMETRIC

Image.init()  # or else not all of FORMATS are known yet
# Pillow refuses twice as many pixels as it warns of; one limit is enough
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class _Contents:
    """What the header of an image file says. bands: how many of its channels Pillow gives; inverted: 0 is white."""

    format: str
    mode: str
    bands: int
    bits: int
    channels: int
    frames: int
    inverted: bool
    signed: bool


def check(path: Path, size: tuple[int, int] | None, value_range: Sequence[float] | None) -> tuple[int, int]:
    """Raise a ValueError that names the file and what is wrong if `decode` would not take it, as far as its header tells.

    The checksums of a PNG are compared as well.

    Args:
        path: An image file.
        size: As `decode` takes it.
        value_range: As `decode` takes it.

    Returns:
        Height and width, as stored.
    """
    with _opened(path, size, value_range) as (image, _):
        return image.height, image.width


def decode(path: Path, size: tuple[int, int] | None, grey: bool, value_range: Sequence[float] | None) -> Images:
    """The pixels of an image file as levels.

    Args:
        path: The file.
        size: None takes a PNG as it is. (height, width) takes every format, turns it as its EXIF orientation says, and crops
            and resizes it as `centre_crop` does.
        grey: One channel in place of three.
        value_range: The values of a file with one channel that become the lowest and the highest level; see `from_values`.

    Returns:
        Levels (H, W, C): uint8, or with `value_range` uint16 with one channel.

    Raises:
        ValueError: A file that cannot be read, or holds what levels cannot stand for; it is named.
    """
    with _opened(path, size, value_range) as (opened, found):
        with _faults_named(path):
            opened.load()
            turned = _orientation(opened)  # a PNG may say it behind its pixels
            image: Image.Image = opened if turned == 1 else ImageOps.exif_transpose(opened)
            opaque = _opaque(image, found.bits)
        if size is None:
            _refuse_turned(path, turned)
    if not opaque:
        raise ValueError(f"{path} has mode {image.mode}; expected 8-bit grey or RGB without transparent pixels")
    with _faults_named(path):
        if value_range is not None:
            values = np.asarray(image)
            if found.bits == 32 and values.dtype == np.int32 and not found.signed:
                values = values.view(np.uint32)  # Pillow has no mode for it
            return _levels_of_values(values, size, value_range)[..., None]
        shown = (image.convert("RGBA") if image.has_transparency_data else image).convert("L" if grey else "RGB")
        levels = np.asarray(shown if size is None else centre_crop(shown, *size))
        return levels[..., None] if grey else levels


@contextlib.contextmanager
def _opened(
    path: Path, size: tuple[int, int] | None, value_range: Sequence[float] | None
) -> Iterator[tuple[ImageFile.ImageFile, _Contents]]:
    """An image whose header was read and is one that `decode` takes; its pixels are not decoded yet."""
    with contextlib.ExitStack() as stack:
        with _faults_named(path):
            file = stack.enter_context(open(path, "rb"))
            with Image.open(file, formats=FORMATS) as first:
                found = _contents(first, file)
                turned = _orientation(first) if first.format != "PNG" or "exif" in first.info else 1
                if first.format == "PNG":
                    first.verify()  # decoding alone does not compare the checksums of the pixels
            file.seek(0)
            image = stack.enter_context(Image.open(file, formats=FORMATS))
        _refuse(path, found, size, value_range)
        if size is None:
            _refuse_turned(path, turned)
        yield image, found


def _contents(image: ImageFile.ImageFile, file: IO[bytes]) -> _Contents:
    bits, channels, inverted, signed = 8, len(image.getbands()), False, False
    if image.format == "PNG":
        position = file.tell()
        file.seek(len(PNG) + 4)
        chunk = file.read(14)
        if chunk[:4] != b"IHDR":
            raise ValueError("it does not begin with IHDR")
        bits, channels = chunk[12], {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[chunk[13]]
        file.seek(position)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits, channels = max(tags.get(_TIFF_BITS, (1,))), tags.get(_TIFF_CHANNELS, 1)
        inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
        signed = _SIGNED in tags.get(_TIFF_KIND, (_UNSIGNED,))
    return _Contents(
        format=image.format or "",
        mode=image.mode,
        bands=len(image.getbands()),
        bits=bits,
        channels=channels,
        frames=getattr(image, "n_frames", 1),
        inverted=inverted,
        signed=signed,
    )


def _refuse(path: Path, found: _Contents, size: tuple[int, int] | None, value_range: Sequence[float] | None) -> None:
    """Raise a ValueError if levels cannot stand for what the file holds, or a score could not trust it."""
    if size is None and found.format != "PNG":
        raise ValueError(
            f"{path} is not a PNG: lossy or converted images score differently from what the model wrote; save PNGs"
            + (f" (its content is {found.format})" if path.suffix.lower() == ".png" else "")
        )
    if found.frames > 1 and found.format != "MPO":  # an MPO is a camera's JPEG, followed by previews and depth
        raise ValueError(f"{path} holds {found.frames} images; save each in a file of its own")
    if found.channels > 1 and found.bits > 8:
        raise ValueError(
            f"{path} has {found.channels} channels of {found.bits} bits; expected 8-bit grey or RGB, or one channel with "
            f"value_range: save such images as uint16 (N, H, W, {found.channels}) in an npz"
        )
    if found.channels > found.bands:
        raise ValueError(f"{path} has {found.channels} channels; expected grey or RGB: save others as (N, H, W, C) in an npz")
    if found.signed and found.bits == 8:
        raise ValueError(f"{path} holds signed 8-bit values; save them as 16-bit or float TIFF, and give their value_range")
    if value_range is None:
        if found.bits > 8:
            raise ValueError(
                f"{path} has mode {found.mode}, more than 8 bits; expected 8-bit grey or RGB, or say with "
                "value_range=[low, high] which values are black and white"
            )
    elif found.bits < 8 or found.channels > 1 or not found.mode.startswith(("L", "I", "F")):
        raise ValueError(
            f"{path} has mode {found.mode} of {found.bits} bits; with value_range, expected one channel of 8, 16 or 32 bits"
        )
    elif found.inverted:
        raise ValueError(f"{path} counts from white (TIFF's WhiteIsZero), which value_range does not tell; save BlackIsZero")


def _refuse_turned(path: Path, orientation: int) -> None:
    if orientation != 1:
        raise ValueError(
            f"{path} is to be shown turned (EXIF orientation {orientation}), which a score would not see; "
            "save it upright, without that entry"
        )


def _orientation(image: Image.Image) -> int:
    try:
        stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that cannot be read, as some cameras and editors write it, turn no image
        return 1
    return stated if stated in range(2, 9) else 1


def _opaque(image: Image.Image, bits: int) -> bool:
    if not image.has_transparency_data:
        return True
    if "transparency" in image.info and image.mode != "P" and (image.mode not in ("L", "RGB") or bits != 8):
        return False  # Pillow would compare the transparent value, which is not scaled, with pixels that are
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() == 255)


def _levels_of_values(values: NDArray, size: tuple[int, int] | None, value_range: Sequence[float]) -> NDArray[np.uint16]:
    if size is None:
        return from_values(values, value_range)
    shown, (low, high) = values.astype(np.float32), value_range
    if (shown != values).any():  # whole numbers that float32 does not hold are counted from the low end of the range
        shown, low, high = (values.astype(np.float64) - low).astype(np.float32), 0.0, high - low
    return from_values(np.asarray(centre_crop(Image.fromarray(shown), *size)), (low, high))


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop and resize to height x width with the filters that ADM's training data went through."""
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises within the block into one sentence that names the file."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has more pixels than are read from one file ({2 * (Image.MAX_IMAGE_PIXELS or 0):,}); save it smaller, "
            "or in parts"
        ) from error
    except Exception as error:  # its parsers let damaged files raise nearly anything: SyntaxError, struct.error, KeyError, ...
        number = getattr(error, "errno", None)
        if number is not None:
            raise ValueError(f"{path} cannot be read ({os.strerror(number)})") from error
        reason = "it is no image of a format that is read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(
            f"{path} is not a readable image ({' '.join(reason.split())[:200] or type(error).__name__})"
        ) from error
