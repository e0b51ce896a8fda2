"""Hundreds of generated image and npz files: each is read right, or refused in one sentence that names it."""

import io
import itertools
import warnings
import zipfile

import numpy as np
from made_files import chunk, png, tiff
from PIL import Image

from sag.data import FolderImages, open_images

SIZE = (6, 9)
RANGE = (0.0, 65535.0)
REFUSED = None


class Tally:
    """Reads files in every way that there is, compares with what is expected, and counts."""

    def __init__(self, folder):
        self.folder, self.right, self.refused = folder, 0, 0

    def image(self, name, content, *, score=REFUSED, train=REFUSED, values=REFUSED, damaged=False):
        """score, train, values: the pixels to be found (H, W, C) without size, with it, and with value_range; or REFUSED.

        damaged: these pixels or a refusal; True: any pixels where the format has no checksum.
        """
        folder = self.folder / f"{self.right + self.refused:03d}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        ways = [(score, {}), (train, {"size": SIZE}), (values, {"size": SIZE, "value_range": RANGE})]
        found = [self._read(lambda o=options: FolderImages(folder, **o), folder, want, damaged) for want, options in ways]
        self._count(any(found))

    def npz(self, content, *, images=REFUSED, labels=None, damaged=False):
        path = self.folder / f"{self.right + self.refused:03d}.npz"
        path.write_bytes(content)

        def opened():
            source = open_images(path)
            source.read(0, len(source))
            if images is not REFUSED:
                assert (source.labels() is None) == (labels is None)
                assert labels is None or source.labels().tolist() == labels
            return source

        self._count(self._read(opened, path, images, damaged, whole=True))

    def _read(self, opened, path, want, damaged, whole=False):
        try:
            source = opened()
            found = source.read(0, len(source))
        except (ValueError, OSError) as error:
            text = str(error)
            assert str(path) in text, text
            assert "\n" not in text
            assert len(text) < 600
            assert want is REFUSED or damaged, text
            return False
        if damaged == "unchecked":
            assert found.dtype in (np.uint8, np.uint16)
            return True
        assert want is not REFUSED, f"{path} should be refused, was read as {found.dtype} {found.shape}"
        expected = want if whole else want[None]
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), path
        return True

    def _count(self, right):
        self.right, self.refused = self.right + right, self.refused + (not right)


def as_rgb(grey):
    return np.repeat(grey, 3, 2)


def random(shape, below, dtype=np.uint8):
    return np.random.default_rng([1, *shape, below % 1000]).integers(0, below, shape, dtype=dtype)


def saved(pixels, kind, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x112] = orientation
    return found


def whole_pngs(tally):
    for bits, interlaced in itertools.product((1, 2, 4, 8, 16), (False, True)):
        grey = random((*SIZE, 1), 2**bits, np.uint16)
        shown = as_rgb((grey.astype(int) * 255 // (2**bits - 1)).astype(np.uint8))
        content = png(grey, bits, interlaced=interlaced)
        if bits == 16:
            tally.image("a.png", content, values=grey)
        else:
            tally.image("a.png", content, score=shown, train=shown, values=grey if bits == 8 else REFUSED)
        if bits <= 8:
            palette = random((2**bits, 3), 256)
            coloured = palette[grey[..., 0]]
            tally.image("p.png", png(grey, bits, palette, interlaced=interlaced), score=coloured, train=coloured)
            clear = chunk(b"tRNS", b"\0" * 2**bits)
            tally.image("t.png", png(grey, bits, palette, clear, interlaced))
            opaque = chunk(b"tRNS", b"\xff" * 2**bits)
            tally.image("t.png", png(grey, bits, palette, opaque, interlaced), score=coloured, train=coloured)
        tally.image("k.png", png(grey, bits, None, chunk(b"tRNS", int(grey[2, 3, 0]).to_bytes(2, "big")), interlaced))
    for bits, channels, interlaced in itertools.product((8, 16), (2, 3, 4), (False, True)):
        pixels = random((*SIZE, channels), 2**bits, np.uint16)
        solid = pixels.copy()
        if channels != 3:
            solid[..., -1] = 2**bits - 1
            tally.image("a.png", png(pixels, bits, interlaced=interlaced))
        shown = solid[..., :3] if channels > 2 else as_rgb(solid[..., :1])
        shown = shown.astype(np.uint8) if bits == 8 else REFUSED
        tally.image("b.PNG", png(solid, bits, interlaced=interlaced), score=shown, train=shown)


def other_formats(tally):
    rgb = random((*SIZE, 3), 256)
    grey = rgb[..., 0]
    for mode, suffix in itertools.product(("L", "RGB"), (".bmp", ".png", ".tif", ".webp", ".jpg", ".gif")):
        pixels, shown = (grey, as_rgb(grey[..., None])) if mode == "L" else (rgb, rgb)
        values = grey[..., None].astype(np.uint16) if mode == "L" else REFUSED
        tally.image(f"b{suffix}", saved(pixels, "BMP"), train=shown, values=values)
        tally.image(f"t{suffix}", saved(pixels, "TIFF", compression="tiff_lzw"), train=shown, values=values)
        tally.image(f"g{suffix}", saved(pixels, "PNG"), score=shown, train=shown, values=values)
        lossless = saved(rgb, "WEBP", lossless=True)
        tally.image(f"w{suffix}", lossless, train=rgb)
        smooth = np.full_like(pixels, 77)
        grey_smooth = np.full((*SIZE, 1), 77, np.uint16) if mode == "L" else REFUSED
        tally.image(f"j{suffix}", saved(smooth, "JPEG"), train=np.full((*SIZE, 3), 77, np.uint8), values=grey_smooth)
    tally.image("a.gif", saved(grey, "GIF"), train=as_rgb(grey[..., None]))
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        frames = {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}
        tally.image("many.png", saved(rgb, kind, **frames))
    cmyk = Image.fromarray(np.full((*SIZE, 4), 0, np.uint8), "CMYK")
    tally.image("c.jpg", saved(cmyk, "JPEG"), train=np.full((*SIZE, 3), 255, np.uint8))
    for kind in ("PPM", "TGA", "ICO", "JPEG2000", "SGI"):
        tally.image("other.png", saved(rgb, kind))


def orientations(tally):
    rgb = random((*SIZE, 3), 256)
    turns = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1)}
    turns |= {6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}
    back = {6: 8, 8: 6}
    for number, turn in turns.items():
        stored = np.ascontiguousarray(turns[back.get(number, number)](rgb))
        assert np.array_equal(turn(stored), rgb)
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            scored = rgb if number == 1 and kind == "PNG" else REFUSED
            tally.image("a.png", saved(stored, kind, exif=exif(number), **options), score=scored, train=rgb)


def tiffs(tally):
    rng = np.random.default_rng(3)
    for order in "<>":
        for dtype in (np.uint16, np.uint32, np.int32, np.int16, np.float32):
            values = rng.integers(0, 30000, (*SIZE, 1)).astype(dtype)
            supported = not (dtype == np.uint32 and order == ">")  # Pillow does not read these
            tally.image("v.tif", tiff(values, order=order), values=values.astype(np.uint16) if supported else REFUSED)
        signed = rng.integers(-30000, 30000, (*SIZE, 1)).astype(np.int16)
        tally.image("s.tif", tiff(signed, order=order), values=signed.clip(0).astype(np.uint16))
        if order == "<":
            large = np.full((*SIZE, 1), 2**32 - 5, np.uint32)
            tally.image("u.tif", tiff(large, order=order), values=np.full((*SIZE, 1), 65535, np.uint16))
        tally.image("i.tif", tiff(rng.integers(-128, 128, (*SIZE, 1)).astype(np.int8), order=order))
        for dtype in (np.float64, np.float16, np.int64, np.uint64):
            tally.image("d.tif", tiff(rng.integers(0, 255, (*SIZE, 1)).astype(dtype), order=order))
        for dtype in (np.uint16, np.float32, np.uint32, np.int16):
            tally.image("c.tif", tiff(rng.integers(0, 255, (*SIZE, 3)).astype(dtype), order=order))
        inverted = rng.integers(0, 256, (*SIZE, 1)).astype(np.uint8)
        tally.image("w.tif", tiff(inverted, 0, order), train=as_rgb(255 - inverted))
        for dtype in (np.uint16, np.float32):
            tally.image("w.tif", tiff(inverted.astype(dtype), 0, order))
        for channels, extra in ((4, 0), (4, 2), (5, 0), (2, 0), (2, 2)):
            tally.image("x.tif", tiff(rng.integers(0, 200, (*SIZE, channels)).astype(np.uint8), extra=extra, order=order))
        bad = np.full((*SIZE, 1), np.nan, np.float32)
        tally.image("n.tif", tiff(bad, order=order))
        tally.image("m.tif", tiff(inverted, order=order, frames=3))


def damaged_images(tally):
    rgb = random((*SIZE, 3), 256)
    rng = np.random.default_rng(5)
    kinds = {"PNG": {}, "BMP": {}, "JPEG": {}, "GIF": {}, "TIFF": {"compression": "tiff_deflate"}, "WEBP": {"lossless": True}}
    for kind, options in kinds.items():
        content = saved(rgb, kind, **options)
        checked = {"score": rgb, "train": rgb, "damaged": True} if kind == "PNG" else {"damaged": "unchecked"}
        for cut in (0, 1, 8, 20, len(content) // 3, len(content) // 2, len(content) - 3):
            tally.image("cut.png", content[:cut], **checked)
        for place in rng.integers(0, len(content), 12):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            tally.image("flip.png", bytes(flipped), **checked)
        tally.image("junk.png", content[:16] + rng.bytes(200), **checked)
    tally.image("noise.png", rng.bytes(500))


def npz(compressed=False, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of double names
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def header(shape, descr="|u1"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def npz_files(tally):
    n = 5
    images = random((n, *SIZE, 3), 256)
    for compressed in (False, True):
        for dtype in (np.uint8, np.uint16, ">u2"):
            given = images.astype(dtype)
            tally.npz(npz(compressed, arr_0=given), images=given.astype(given.dtype.newbyteorder("=")))
        for dtype in (
            np.int8,
            np.int64,
            np.uint32,
            np.float16,
            np.float32,
            np.float64,
            bool,
            complex,
            "M8[s]",
            "S3",
            "U2",
            object,
        ):
            tally.npz(npz(compressed, arr_0=images.astype(dtype)))
        tally.npz(npz(compressed, arr_0=np.zeros(n, [("a", np.uint8), ("b", np.int32)])))
        tally.npz(npz(compressed, arr_0=np.asfortranarray(images)))
        for shape in ((), (n,), (n, 6), (n, 6, 9), (0, 6, 9, 3), (n, 0, 9, 3), (n, 3, 6, 9), (1, n, 6, 9, 3)):
            tally.npz(npz(compressed, arr_0=np.zeros(shape, np.uint8)))
        for dtype in (np.int8, np.uint8, np.int16, ">i4", np.int64, np.uint64, np.float16, np.float32, np.float64):
            for shape in ((n,), (n, 1)):
                labels = np.arange(n).astype(dtype).reshape(shape)
                tally.npz(npz(compressed, arr_0=images, arr_1=labels), images=images, labels=list(range(n)))
        wrong = [np.arange(n + 1), np.arange(n - 1), np.eye(n), np.int64(3), np.arange(n)[None], np.array([0, 1, 2, 3, 3.5])]
        wrong += [np.array([0, 1, 2, 3, np.nan]), np.array([0, 1, 2, 3, np.inf]), np.array(list("abcde")), np.ones(n, bool)]
        wrong += [np.ones(n, complex), np.array([{}] * n), np.array([1, 2, 3, 4, 2**63], np.uint64), np.full(n, 1e300)]
        for labels in wrong:
            tally.npz(npz(compressed, arr_0=images, arr_1=labels))
    plain = npy(images)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        tally.npz(zipped([("arr_0.npy", plain)], method), images=images)
    tally.npz(zipped([("arr_0.npy", plain), ("arr_0.npy", plain)]))
    tally.npz(zipped([("inner/arr_0.npy", plain)]))
    tally.npz(zipped([("arr_0", plain)]))
    tally.npz(zipped([]))
    tally.npz(zipped([("arr_0.npy", plain[:-7])]))
    tally.npz(zipped([("arr_0.npy", plain + b"more")]))
    tally.npz(plain)
    for shape in ((10**15, 6, 9, 3), (2**62, 2**62, 4, 3), (-1, 6, 9, 3), (5, -6, 9, 3), (5.0, 6, 9, 3), "x", 7):
        tally.npz(zipped([("arr_0.npy", header(shape) + bytes(100))], zipfile.ZIP_DEFLATED))
    for descr in ("|u0", "<q9", "O", "|V5", "[('a', 'u1')]", "__import__('os')"):
        tally.npz(zipped([("arr_0.npy", header((5, 6, 9, 3), descr) + images.tobytes())]))
    tally.npz(zipped([("arr_0.npy", header((1, 1, 1, 1)) + bytes(50_000_000))], zipfile.ZIP_DEFLATED))  # a small bomb
    tally.npz(zipped([("arr_0.npy", plain), ("arr_1.npy", header((10**12,), "<i8") + bytes(1000))]))


def damaged_npz_files(tally):
    images, labels = random((5, *SIZE, 3), 256), [4, 3, 2, 1, 0]
    rng = np.random.default_rng(7)
    for compressed in (False, True):
        content = npz(compressed, arr_0=images, arr_1=np.array(labels))
        for cut in (0, 1, 4, 100, len(content) // 2, len(content) - 30, len(content) - 1):
            tally.npz(content[:cut])
        for place in rng.integers(0, len(content), 40):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            tally.npz(bytes(flipped), images=images, labels=labels, damaged=True)
        for flags in (1, 64):  # encrypted, strongly encrypted
            local, central = content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8
            flagged = bytearray(content)
            flagged[local], flagged[central] = flagged[local] | flags, flagged[central] | flags
            tally.npz(bytes(flagged))
        unknown = bytearray(content)
        unknown[content.index(b"PK\x01\x02") + 10] = 97
        tally.npz(bytes(unknown))
        tally.npz(b"before" + content, images=images, labels=labels, damaged=True)
        tally.npz(content + b"after", images=images, labels=labels, damaged=True)
        tally.npz(content[:50] + rng.bytes(400))


def test_every_file_is_read_right_or_refused_by_name(tmp_path, capsys):
    tally = Tally(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for make in (whole_pngs, other_formats, orientations, tiffs, damaged_images, npz_files, damaged_npz_files):
            make(tally)
    assert not [w for w in caught if issubclass(w.category, UserWarning) and "PIL" not in w.filename]
    total = tally.right + tally.refused
    with capsys.disabled():
        print(f"\nfuzz: {total} files: {tally.right} right, {tally.refused} refused by name")
    assert tally.right > 0
    assert tally.refused > 0
    assert total >= 250
