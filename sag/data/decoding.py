"""Reading one image file: what it contains, by its content and not by its name, and its pixels as levels."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from sag.data.levels import Images, from_values

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_CHANNELS, _TIFF_KIND = 258, 262, 277, 339
_UNSIGNED, _SIGNED = 1, 2  # values of _TIFF_KIND
_WHITE_IS_ZERO = 0  # a value of _TIFF_PHOTOMETRIC

Image.init()  # otherwise Pillow does not know all of FORMATS yet
# Pillow warns about large images and refuses images of twice that size; one limit is enough
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class _Contents:
    """What the header of an image file says.

    Attributes:
        format: Pillow's name of the format.
        mode: Pillow's mode.
        bands: Number of channels that Pillow reads.
        bits: Bits per channel.
        channels: Number of channels in the file.
        frames: Number of images in the file.
        inverted: Whether 0 is white.
        signed: Whether the values are signed.
    """

    format: str
    mode: str
    bands: int
    bits: int
    channels: int
    frames: int
    inverted: bool
    signed: bool


def check(path: Path, size: tuple[int, int] | None, value_range: Sequence[float] | None) -> tuple[int, int]:
    """Check that `decode` accepts a file, as far as its header tells. The checksums of a PNG are compared as well.

    Args:
        path: The image file.
        size: See `decode`.
        value_range: See `decode`.

    Returns:
        Height and width, as stored.

    Raises:
        ValueError: If `decode` would not accept the file. The message names it.
    """
    with _opened(path, size, value_range) as (image, _):
        return image.height, image.width


def decode(path: Path, size: tuple[int, int] | None, grey: bool, value_range: Sequence[float] | None) -> Images:
    """Read the pixels of an image file.

    Args:
        path: The image file.
        size: None to accept only PNGs and leave them as they are. (height, width) accepts all formats, applies the EXIF
            orientation, and crops and resizes with `centre_crop`.
        grey: Whether to return one channel instead of three.
        value_range: The values of a one-channel file that become the lowest and the highest level (see `from_values`).

    Returns:
        Levels, (H, W, C) uint8, or (H, W, 1) uint16 with `value_range`.

    Raises:
        ValueError: If the file cannot be read, or its values cannot be converted to levels. The message names the file.
    """
    with _opened(path, size, value_range) as (opened, found):
        with _faults_named(path):
            opened.load()
            turned = _orientation(opened)  # in a PNG, it may be stored after the pixels
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
                values = values.view(np.uint32)  # Pillow has no mode for uint32
            return _levels_of_values(values, size, value_range)[..., None]
        shown = (image.convert("RGBA") if image.has_transparency_data else image).convert("L" if grey else "RGB")
        levels = np.asarray(shown if size is None else centre_crop(shown, *size))
        return levels[..., None] if grey else levels


@contextlib.contextmanager
def _opened(
    path: Path, size: tuple[int, int] | None, value_range: Sequence[float] | None
) -> Iterator[tuple[ImageFile.ImageFile, _Contents]]:
    """Open an image and check by its header that `decode` accepts it. Its pixels are not decoded yet."""
    with contextlib.ExitStack() as stack:
        with _faults_named(path):
            file = stack.enter_context(open(path, "rb"))
            with Image.open(file, formats=FORMATS) as first:
                found = _contents(first, file)
                turned = _orientation(first) if first.format != "PNG" or "exif" in first.info else 1
                if first.format == "PNG":
                    first.verify()  # decoding does not compare the checksums of the pixels
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
    """Raise a ValueError if the values cannot be converted to levels, or scores of this format would be wrong."""
    if size is None and found.format != "PNG":
        raise ValueError(
            f"{path} is not a PNG: lossy or converted images score differently from what the model wrote; save PNGs"
            + (f" (its content is {found.format})" if path.suffix.lower() == ".png" else "")
        )
    if found.frames > 1 and found.format != "MPO":  # an MPO is a camera's JPEG with previews and depth after it
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
                f"{path} has mode {found.mode}, more than 8 bits; expected 8-bit grey or RGB; for other files set "
                "value_range=[low, high], the values of black and white"
            )
    elif found.bits < 8 or found.channels > 1 or not found.mode.startswith(("L", "I", "F")):
        raise ValueError(
            f"{path} has mode {found.mode} of {found.bits} bits; with value_range, expected one channel of 8, 16 or 32 bits"
        )
    elif found.inverted:
        raise ValueError(f"{path} stores white as 0 (TIFF's WhiteIsZero), which value_range cannot express; save BlackIsZero")


def _refuse_turned(path: Path, orientation: int) -> None:
    if orientation != 1:
        raise ValueError(
            f"{path} has EXIF orientation {orientation}, so viewers rotate or mirror it, but scores would not; "
            "save it upright, without that entry"
        )


def _orientation(image: Image.Image) -> int:
    try:
        stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # some cameras and editors write EXIF data that cannot be read; it then has no orientation
        return 1
    return stated if stated in range(2, 9) else 1


def _opaque(image: Image.Image, bits: int) -> bool:
    if not image.has_transparency_data:
        return True
    if "transparency" in image.info and image.mode != "P" and (image.mode not in ("L", "RGB") or bits != 8):
        return False  # Pillow would compare the transparent value, which it does not scale, with scaled pixels
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() == 255)


def _levels_of_values(values: NDArray[Any], size: tuple[int, int] | None, value_range: Sequence[float]) -> NDArray[np.uint16]:
    if size is None:
        return from_values(values, value_range)
    shown, (low, high) = values.astype(np.float32), value_range
    if (shown != values).any():  # float32 cannot hold these integers exactly, but their distances from `low`
        shown, low, high = (values.astype(np.float64) - low).astype(np.float32), 0.0, high - low
    return from_values(np.asarray(centre_crop(Image.fromarray(shown), *size)), (low, high))


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop and resize an image with the filters of ADM's training data.

    It is halved with a box filter while it is at least twice as large, resized bicubically until it just covers the new size,
    and cropped around the centre.

    Args:
        image: The image.
        height: The new height in pixels.
        width: The new width in pixels.
    """
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Convert all exceptions that Pillow raises within the block to a ValueError that names the file."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the most that are read from one file; save it "
            "smaller, or in parts"
        ) from error
    except Exception as error:  # damaged files make its parsers raise almost anything: SyntaxError, struct.error, KeyError, ...
        number = getattr(error, "errno", None)
        if number is not None:
            raise ValueError(f"{path} cannot be read ({os.strerror(number)})") from error
        reason = "its format is not supported" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(
            f"{path} is not a readable image ({' '.join(reason.split())[:200] or type(error).__name__})"
        ) from error
