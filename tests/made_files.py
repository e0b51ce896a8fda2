"""Image files written byte by byte, because Pillow cannot write them: PNGs of every kind, and TIFFs."""

import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # row, column, steps
COLOURS = {1: 0, 3: 2, 2: 4, 4: 6}  # PNG's colour type by the number of channels
BYTE, ASCII, SHORT, LONG = 1, 2, 3, 4  # TIFF's types


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, bits=8, palette=None, extra=b"", interlaced=False):
    """A PNG of pixels (H, W, C): whole numbers below 2 ** bits. palette: (n, 3), then pixels are places in it."""
    height, width, channels = pixels.shape
    colour = 3 if palette is not None else COLOURS[channels]
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    data = b""
    for row, column, down, right in passes:
        part = pixels[row::down, column::right]
        if part.size:
            data += b"".join(b"\0" + _packed(line, bits) for line in part)
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, int(interlaced))
    colours = b"" if palette is None else chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    parts = [chunk(b"IHDR", header), colours, extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _packed(line, bits):
    if bits == 16:
        return line.astype(">u2").tobytes()
    ones = np.unpackbits(line.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - bits :]
    return np.packbits(ones.ravel()).tobytes()


def tiff(values, photometric=None, order="<", extra=None, orientation=None, frames=1):
    """An uncompressed TIFF of values (H, W, C) of any NumPy type, `frames` times the same."""
    height, width, channels = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8 * values.dtype.itemsize] * channels),
        259: (SHORT, [1]),
        262: (SHORT, [(2 if channels >= 3 else 1) if photometric is None else photometric]),
        273: (LONG, [0]),
        277: (SHORT, [channels]),
        278: (LONG, [height]),
        279: (LONG, [values.nbytes]),
        339: (SHORT, [kind] * channels),
    }
    if extra is not None:
        tags[338] = (SHORT, [extra])
    if orientation is not None:
        tags[274] = (SHORT, [orientation])
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8))
    for frame in range(frames):
        begin = len(out)
        after = begin + 2 + 12 * len(tags) + 4
        rest = b""
        entries = b""
        for tag, (form, numbers) in sorted(tags.items()):
            code = "H" if form == SHORT else "I"
            packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
            if tag == 273:
                packed = b"DATA"
            if len(packed) > 4:
                place, rest = after + len(rest), rest + packed
                packed = struct.pack(f"{order}I", place)
            entries += struct.pack(f"{order}HHI", tag, form, len(numbers)) + packed.ljust(4, b"\0")
        data = after + len(rest)
        entries = entries.replace(b"DATA", struct.pack(f"{order}I", data))
        following = data + values.nbytes if frame + 1 < frames else 0
        out += struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following) + rest + values.tobytes()
    return bytes(out)
