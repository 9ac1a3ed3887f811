"""Files of every format and mode that the readers accept are read as written; all others are refused by name."""
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagefiles import (
    COLOUR,
    GREY,
    PALETTE,
    RGB,
    SMOOTH,
    SMOOTH_IMAGE,
    X,
    bmp,
    chunk,
    ids_below,
    netpbm,
    png,
    saved,
    tiff,
)
from PIL import Image

from dataset import check, files, inspection
from dataset.segmentation import Sample
from utils.errors import DataError

EXIF_6 = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHHI", 274, 3, 1, 6, 0, 0)  # orientation 6
SIZES = ((1, 1), (3, 11), (5, 8), (17, 13), (9, 33))  # (height, width): rows that end within a byte, and that do not


# ---- labels ----------------------------------------------------------------------------------------------------------

TWO, SIXTEEN = np.array([[0] * 3, [255] * 3], np.uint8), np.arange(16, dtype=np.uint8)[:, None].repeat(3, 1)
RAMP = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
PACKERS = {8: zlib.compress, 32946: zlib.compress, 5: imagecodecs.lzw_encode, 32773: imagecodecs.packbits_encode,
           50000: imagecodecs.zstd_encode}

LABELS = {  # name -> (number of ids that it can hold, ids -> bytes of a file)
    **{f"PNG {kind}, {bits} bits{', interlaced' * lace}": (
        2**bits, lambda ids, b=bits, c=colour, i=lace: png(ids, b, c, i))
       for kind, colour, depths in (("grey", 0, (1, 2, 4, 8, 16)), ("palette", 3, (1, 2, 4, 8))) for bits in depths
       for lace in (False, True)},
    **{f"PNG palette with transparency, {bits} bits": (
        2**bits, lambda ids, b=bits: png(ids, b, 3, before=chunk(b"tRNS", b"\0\x80"))) for bits in (1, 2, 4, 8)},
    **{f"PNG grey with transparency, {bits} bits": (
        2**bits, lambda ids, b=bits: png(ids, b, 0, before=chunk(b"tRNS", b"\0\0"))) for bits in (1, 2, 4, 8, 16)},
    **{f"PNG RGB, 16 bits{', interlaced' * lace}": (
        65536, lambda ids, i=lace: png(np.stack([ids, ids[::-1], ids * 0], 2), 16, 2, i)) for lace in (False, True)},
    **{f"PNG grey with {name.decode()}": (16, lambda ids, n=name, b=body: png(ids, 4, 0, before=chunk(n, b)))
       for name, body in ((b"gAMA", struct.pack(">I", 100000)), (b"sBIT", b"\x02"), (b"sRGB", b"\0"))},
    **{f"PGM P{kind}, maximum {maxval}": (maxval + 1, lambda ids, k=kind, m=maxval: netpbm(ids, k, m))
       for kind in (2, 5) for maxval in (1, 3, 18, 127, 254, 255, 256, 1000, 65534, 65535)},
    **{f"PBM P{kind}": (2, lambda ids, k=kind: netpbm(ids, k)) for kind in (1, 4)},
    **{f"Netpbm P{kind} with comments": (2, lambda ids, k=kind: netpbm(ids, k, comment="# of 9 9\n#\n"))
       for kind in (1, 2, 4, 5)},
    **{f"BMP {name}, {bits} bits{suffix}": (
        2**bits, lambda ids, b=bits, p=palette, o=options: bmp(ids, b, p[:2**b], **o))
       for name, palette in (("colour palette", PALETTE), ("grey ramp", RAMP), ("white first", RAMP[::-1]))
       for bits in (1, 4, 8) for suffix, options in (("", {}), (", top down", {"top_down": True}),
                                                     (", core header", {"core": True}))},
    **{f"BMP black and white, {bits} bits": (
        2, lambda ids, b=bits: bmp(ids, b, TWO, used=2)) for bits in (1, 4, 8)},
    "BMP ramp of sixteen, 8 bits": (16, lambda ids: bmp(ids, 8, SIXTEEN, used=16)),
    **{f"TIFF {name}, {bits} bits, {'big' if order == '>' else 'little'}-endian, compression {code}": (
        min(2**bits, 65536), lambda ids, b=bits, p=photometric, o=order, c=code: tiff(
            ids, b, p, o, c, PACKERS.get(c, bytes)))
       for name, photometric in (("grey", 1), ("WhiteIsZero", 0), ("palette", 3))
       for bits in (1, 2, 4, 8, 12, 16, 32) if not (photometric == 3 and bits > 8)
       for order in "<>" for code in (1, *(PACKERS if order == "<" and photometric == 1 else (8,)))
       if not (code == 32773 and bits in (1, 2, 4, 12))},
    **{f"TIFF {name}, {bits} bits": (min(2**bits, 65536), lambda ids, b=bits, o=options: tiff(ids, b, **o))
       for bits in (1, 2, 4, 8, 16) for name, options in {
           "FillOrder 2": {"fill_order": 2}, "in strips": {"strips": 3}, "planar": {"planar": 2}, "big": {"big": True},
           "in tiles": {"tile": 16}, "FillOrder 2, deflate": {"fill_order": 2, "compression": 8,
                                                             "encode": zlib.compress}}.items()},
    **{f"TIFF signed, {bits} bits": (2**(min(bits, 16) - 1), lambda ids, b=bits: tiff(ids, b, sample_format=2))
       for bits in (8, 16, 32)},
    **{f"TIFF {name}": (2, lambda ids, n=name: saved(Image.fromarray(ids.astype(bool)), "TIFF", compression=n))
       for name in ("tiff_ccitt", "group3", "group4", "tiff_lzma")},
    **{f"TIFF with differences, {bits} bits, compression {code}": (
        2**bits, lambda ids, b=bits, c=code: tiff(np.diff(ids, axis=1, prepend=0) % 2**b, b, compression=c,
                                                  encode=PACKERS[c], tags=[(317, 3, [2])]))
       for bits in (8, 16) for code in (5, 8)},
    **{f"TIFF by Pillow, {bits} bits": (2**min(bits, 16), lambda ids, b=bits: saved(Image.fromarray(ids.astype(
        {8: np.uint8, 16: np.uint16, 32: np.int32}[b])), "TIFF")) for bits in (8, 16, 32)},
    "TIFF with an overview": (256, lambda ids: tiff(ids, 8, pages=[(ids[::2, ::2], 8, 1)])),
}


@pytest.mark.parametrize("name", LABELS)
def test_label_ids_are_read_as_stored(tmp_path, name):
    limit, write = LABELS[name]
    arrays = [ids_below(limit, size) for size in SIZES]
    if limit <= 65536:
        arrays.append(np.arange(limit)[:, None] if limit < 16 else np.arange(limit).reshape(16, -1) if limit % 16 == 0
                      else np.arange(limit)[None])  # every value
    for ids in arrays:
        (tmp_path / "x").write_bytes(write(ids))
        got = files.read_label_ids(tmp_path / "x")
        assert got.dtype in (np.uint8, np.uint16) and got.shape == ids.shape and (got == ids).all()


def test_the_container_does_not_matter(tmp_path):
    ids = ids_below(2, (7, 13))
    for name, (_, write) in LABELS.items():
        (tmp_path / "x").write_bytes(write(ids))
        assert (files.read_label_ids(tmp_path / "x") == ids).all(), name


RANDOM = settings(max_examples=150, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))


@RANDOM
@given(st.data())
def test_any_ids_of_any_size_in_any_container(tmp_path, data):
    size, seed = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 40))), data.draw(st.integers(0, 9))
    maxval = data.draw(st.integers(1, 65535))
    ids = ids_below(maxval + 1, size, seed)
    depth = next(d for d in (1, 2, 4, 8, 16) if maxval < 2**d)
    write = data.draw(st.sampled_from([
        lambda: netpbm(ids, 5, maxval), lambda: netpbm(ids, 2, maxval),
        lambda: png(ids, depth, 0, data.draw(st.booleans())),
        lambda: tiff(ids, depth, data.draw(st.sampled_from([0, 1])), data.draw(st.sampled_from("<>")),
                     strips=data.draw(st.integers(1, 4)), fill_order=data.draw(st.sampled_from([1, 2]))),
        lambda: tiff(ids, depth, tile=16, big=data.draw(st.booleans()))]))
    (tmp_path / "x").write_bytes(write())
    got = files.read_label_ids(tmp_path / "x")
    assert got.shape == ids.shape and (got == ids).all()


def in_palette(ids, palette):
    """One file of every format that has palettes, with this one, uint8 [n, 3]."""
    full = np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])
    default = (PALETTE.T.astype("<u2") * 257).tobytes()
    return {"PNG": png(ids, 8, 3).replace(chunk(b"PLTE", PALETTE.tobytes()), chunk(b"PLTE", palette.tobytes())),
            "BMP": bmp(ids, 8, palette, used=len(palette)),
            "TIFF": tiff(ids, 8, 3).replace(default, (full.T.astype("<u2") * 257).tobytes())}


def greys(levels):
    return np.array(levels, np.uint8)[:, None].repeat(3, 1)


@pytest.mark.parametrize("palette", [
    greys([0, 255]), greys([0, 1]), greys([0, 128, 255]), greys([0, 127, 255]), greys([0, 1, 2]), greys(range(256)),
    greys(range(255, -1, -1)), *(greys(np.linspace(0, 255, n)) for n in (4, 5, 19, 100)), greys([0, 1, 2, 9, 9]),
    greys([0] * 9),
    np.array([[0, 0, 0], [70, 70, 70], [70, 70, 71]], np.uint8)], ids=lambda p: str(p[:6, 2].tolist()))
def test_a_palette_that_shows_the_indices_leaves_them_the_ids(tmp_path, palette):
    ids = ids_below(3 if len(palette) == 5 else len(palette), (16, 17))
    for kind, content in in_palette(ids, palette).items():
        (tmp_path / "x").write_bytes(content)
        assert (files.read_label_ids(tmp_path / "x") == ids).all(), kind


@pytest.mark.parametrize("seed", range(20))
def test_greys_that_a_program_has_renumbered_are_refused(tmp_path, seed):
    """As optipng (by size), oxipng and pngquant (by frequency) and Pillow's quantize write a grey label of few ids."""
    rng = np.random.default_rng(seed)
    levels = rng.choice(256, rng.integers(1, 40), replace=False)
    levels = np.sort(levels) if seed % 2 else levels
    levels[0] += levels[0] == 0  # else it may be the index
    ids = rng.integers(0, len(levels), (40, 40))
    ids[0, 0] = 0
    said = f"greys other than their indices, grey {levels[0]} at index 0, .* as a grey PNG"
    for kind, content in in_palette(ids, greys(levels)).items():
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match=said):
            files.read_label_ids(tmp_path / "x")
            pytest.fail(kind)
        assert (files.read_image(tmp_path / "x") == greys(levels)[ids]).all()


@pytest.mark.parametrize("values", [[0, 1], [7, 8], [0, 7, 8, 11], [3], [0, 1, 255], range(19)])
def test_a_grey_label_that_pillow_has_made_a_palette_of_is_read_right_or_refused(tmp_path, values):
    ids = np.random.default_rng(0).choice(np.array(values, np.uint8), (20, 30))
    grey = Image.fromarray(ids)
    grey.save(tmp_path / "x.gif")
    refused = 0
    for made in (grey.convert("P"), grey.convert("RGB").quantize(256), Image.open(tmp_path / "x.gif"),
                 grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)):
        for kind in ("PNG", "TIFF", "BMP"):
            (tmp_path / "x").write_bytes(saved(made, kind))
            try:
                assert (files.read_label_ids(tmp_path / "x") == ids).all()
            except DataError as error:
                refused += "greys other than their indices" in str(error)
    assert refused >= 6


LABEL8 = Image.fromarray(GREY.astype(np.uint8))
REFUSED_LABELS = {  # name -> (bytes, what must be said)
    **{f"PNG {name}, {bits} bits": (png(np.zeros((6, 10, channels), int), bits, colour), f"{bits}-bit {word} PNG")
       for name, colour, channels, word, depths in (
           ("RGB", 2, 3, "RGB", (8,)), ("alpha", 4, 2, "grey and alpha", (8, 16)),
           ("RGBA", 6, 4, "RGB and alpha", (8, 16))) for bits in depths},
    "APNG": (saved(LABEL8, "PNG", save_all=True, append_images=[LABEL8.rotate(180)]), "8-bit grey PNG of 2 pictures"),
    "JPEG": (saved(LABEL8, "JPEG"), "JPEG of mode L (lossy"), "WebP": (saved(RGB, "WEBP", lossless=True), "WebP"),
    "GIF": (saved(LABEL8, "GIF"), "GIF"), "JPEG 2000": (imagecodecs.jpeg2k_encode(GREY.astype(np.uint8)), "JPEG 2000"),
    "JPEG XL": (imagecodecs.jpegxl_encode(GREY.astype(np.uint8)), "JPEG XL"),
    "NumPy": (b"\x93NUMPY\1\0", "NumPy"), "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "OpenEXR": (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR"), "HEIF": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"), "PDF": (b"%PDF-1.4", "PDF"), "ZIP": (b"PK\3\4", "ZIP"),
    "PAM": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\0", "PAM"),
    "PFM": (b"Pf\n1 1\n-1.0\n\0\0\0\0", "PFM"), "text": (b"not an image", "no image format that is known"),
    "nothing": (b"", "an empty file"),
    **{f"PPM P{kind}": (netpbm(COLOUR, kind, 255), f"PPM (P{kind}, maximum 255)") for kind in (3, 6)},
    **{f"PGM P{kind} of ids beyond its maximum": (netpbm(GREY, kind, 9), "maximum 9") for kind in (2, 5)},
    **{f"PGM P{kind} of two pictures": (netpbm(GREY % 2, kind, 18) * 2, "") for kind in (1, 2, 4, 5)},
    "PGM with two characters behind its header": (netpbm(GREY, 5, 255).replace(b"255\n", b"255\r\n"), "1 bytes more"),
    "PGM of a word that would need 20 GB": (b"P2 1000 100 255\n" + b"1 " * 99999 + b"0" * 200000, "more than 9 digits"),
    "PGM of maximum 0": (b"P5 1 1 0\n\0", "maximum 0"),
    "PGM of maximum 65536": (b"P5 1 1 65536\n\0\0", "maximum 65536"),
    "BMP, 24 bits": (bmp(COLOUR, 24), "24-bit colour BMP"),
    "BMP, 32 bits": (saved(RGB.convert("RGBA"), "BMP"), "32-bit colour BMP"),
    **{f"BMP, RLE{bits}": (bmp(GREY % 16, bits, PALETTE[:2**bits], rle=b"\x0a\1\0\0" * 6 + b"\0\1"),
                           f"{bits}-bit palette BMP, run-length encoded") for bits in (4, 8)},
    "BMP, pixels in the palette": (bmp(GREY, 8, PALETTE[:99]), "palette"),
    "TIFF RGB": (tiff(COLOUR, 8, 2), "8-bit RGB TIFF (uncompressed) of 3 channels"),
    "TIFF of two channels": (tiff(COLOUR[..., :2], 8, tags=[(338, 3, [0])]), "grey TIFF (uncompressed) of 2 channels"),
    "TIFF float": (tiff(GREY, 32, sample_format=3), "32-bit floating-point grey TIFF"),
    "TIFF, 64 bits": (tiff(GREY.astype(np.uint32).repeat(2, 1), 32).replace(
        struct.pack("<HHII", 258, 3, 1, 32), struct.pack("<HHII", 258, 3, 1, 64)), "64-bit grey TIFF"),
    "TIFF, 24 bits": (tiff(GREY, 24), "24-bit grey TIFF"),
    "TIFF complex": (tiff(GREY, 32, sample_format=5), "complex"),
    "TIFF JPEG": (saved(LABEL8, "TIFF", compression="jpeg"), "8-bit grey TIFF (JPEG, lossy)"),
    **{f"TIFF {name}": (tiff(GREY, 8, compression=code), f"8-bit grey TIFF ({said})") for name, code, said in (
        ("WebP", 50001, "WebP, lossy"), ("JPEG 2000", 34712, "JPEG 2000, lossy"), ("LERC", 34887, "LERC, lossy"),
        ("unknown compression", 34926, "compression 34926"))},
    **{f"TIFF PackBits, {bits} bits": (tiff(GREY % 2, bits, compression=32773, encode=imagecodecs.packbits_encode),
                                       f"{bits}-bit grey TIFF (PackBits), whose rows") for bits in (1, 2, 4, 12)},
    "TIFF mask": (tiff(GREY % 2, 1, 4), "1-bit mask TIFF"),
    "TIFF of two pages": (tiff(GREY, 8, pages=[(GREY, 8, 0)]), "8-bit grey TIFF (uncompressed) of 2 pages"),
    "TIFF of a loop of pages": (tiff(GREY, 8)[:-4] + tiff(GREY, 8)[4:8], "lead back"),
    **{f"TIFF, id {wrong}, {bits} bits": (tiff(GREY * 0 + wrong, bits, sample_format=kind), f"ids {wrong}..{wrong}")
       for wrong, bits, kind in ((-1, 8, 2), (-1, 16, 2), (-1, 32, 2), (65536, 32, 1), (2**31 + 5, 32, 1),
                                 (70000, 32, 2))},
    "TIFF of no page": (b"II*\0\0\0\0\0", "cut short"),
    "TIFF of no tags": (b"II*\0\x08\0\0\0" + bytes(6), "cut short"),
    "TIFF bomb": (tiff(GREY, 8).replace(struct.pack("<HHII", 256, 4, 1, 10), struct.pack("<HHII", 256, 4, 1, 2**31)),
                  "pixels"),
    "PGM bomb": (b"P5 999999999 999999999 255\n", "pixels"), "PBM bomb": (b"P4 30000 30000\n", "pixels"),
}


@pytest.mark.parametrize("name", REFUSED_LABELS)
def test_other_labels_are_refused_by_name(tmp_path, name):
    content, said = REFUSED_LABELS[name]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        files.read_label_ids(tmp_path / "x.png")
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x.png'}: cannot be read as a label (") and said in text and "\n" not in text
    assert text.endswith(".") and ("save" in text or "replace" in text)  # what to do
    (tmp_path / "i.png").write_bytes(png(COLOUR, 8, 2))
    found = inspection.inspect(Sample("x", tmp_path / "i.png", tmp_path / "x.png"))
    assert found.label_error == text and found.image_error is None


# ---- images ----------------------------------------------------------------------------------------------------------

ALPHA = np.random.default_rng(3).integers(0, 256, (6, 10, 1))
INK = np.concatenate([255 - SMOOTH, (X // 2)[:, :, None]], 2).astype(np.uint8)  # cyan, magenta, yellow, black
INK_SHOWN = np.rint((255. - INK[:, :, :3]) * (255. - INK[:, :, 3:]) / 255)


def grey(values, maxval):
    return np.rint(np.asarray(values) * 255. / maxval)[:, :, None].repeat(3, 2)


def below(maxval):
    return ids_below(maxval + 1, (6, 11))


def deep(array):
    return array * 257 - 3 * (array > 7)  # 16 bits whose high byte is no rounding of them


IMAGES = {  # name -> (bytes, pixels as a viewer shows them, largest difference)
    **{f"PNG grey, {bits} bits{', interlaced' * lace}{', transparent' * bool(extra)}": (
        png(below(2**bits - 1), bits, 0, lace, extra), grey(below(2**bits - 1), 2**bits - 1), 0)
       for bits in (1, 2, 4, 8) for lace in (False, True) for extra in (b"", chunk(b"tRNS", b"\0\1"))},
    **{f"PNG palette, {bits} bits{', interlaced' * lace}{', transparent' * bool(extra)}": (
        png(below(2**bits - 1), bits, 3, lace, extra), PALETTE[below(2**bits - 1)], 0)
       for bits in (1, 2, 4, 8) for lace in (False, True) for extra in (b"", chunk(b"tRNS", b"\0\x80"))},
    **{f"PNG RGB{' and alpha' * alpha}, {bits} bits{', interlaced' * lace}": (
        png((np.concatenate([COLOUR, ALPHA], 2) if alpha else COLOUR) if bits == 8 else deep(
            np.concatenate([COLOUR, ALPHA], 2) if alpha else COLOUR), bits, 6 if alpha else 2, lace),
        COLOUR if bits == 8 else deep(COLOUR) >> 8, 0)
       for alpha in (False, True) for bits in (8, 16) for lace in (False, True)},
    "PNG RGB, transparent": (png(COLOUR, 8, 2, before=chunk(b"tRNS", bytes(6))), COLOUR, 0),
    "PNG grey and alpha": (png(np.concatenate([COLOUR[..., :1], ALPHA], 2), 8, 4), grey(COLOUR[..., 0], 255), 0),
    **{f"PNG RGB with {name.decode()}": (png(COLOUR, 8, 2, before=chunk(name, body)), COLOUR, 0)
       for name, body in ((b"gAMA", struct.pack(">I", 100000)), (b"sBIT", b"\5\6\5"), (b"sRGB", b"\0"),
                          (b"bKGD", bytes(6)), (b"tEXt", b"Software\0x"))},
    "JPEG": (saved(SMOOTH_IMAGE, "JPEG", quality=95), SMOOTH, 12),
    "JPEG, progressive": (saved(SMOOTH_IMAGE, "JPEG", quality=95, progressive=True), SMOOTH, 12),
    "JPEG, grey": (saved(Image.fromarray(SMOOTH[..., 0]), "JPEG", quality=95), grey(SMOOTH[..., 0], 255), 12),
    "JPEG, RGB inside": (imagecodecs.jpeg8_encode(SMOOTH, level=95, outcolorspace="RGB"), SMOOTH, 12),
    "JPEG of several pictures": (saved(SMOOTH_IMAGE, "MPO", quality=95, save_all=True,
                                       append_images=[SMOOTH_IMAGE.rotate(180)]), SMOOTH, 12),
    "JPEG, CMYK by Pillow": (saved(Image.frombytes("CMYK", (56, 40), INK.tobytes()), "JPEG", quality=100), INK_SHOWN,
                             12),
    **{f"JPEG, inverted {inside}": (imagecodecs.jpeg8_encode(255 - INK, level=100, colorspace="CMYK",
                                                             outcolorspace=inside), INK_SHOWN, 12)
       for inside in ("CMYK", "YCCK")},
    "WebP": (saved(SMOOTH_IMAGE, "WEBP", quality=95), SMOOTH, 16),
    "WebP, lossless": (saved(RGB, "WEBP", lossless=True), COLOUR, 0),
    "WebP with alpha": (imagecodecs.webp_encode(np.concatenate([COLOUR, ALPHA.clip(9)], 2).astype(np.uint8),
                                                lossless=True), COLOUR, 0),
    **{f"BMP {name}, {bits} bits{suffix}": (
        bmp(below(2**bits - 1), bits, p[:2**bits], **options), p[below(2**bits - 1)], 0)
       for name, p in (("colour palette", PALETTE), ("grey ramp", RAMP), ("white first", RAMP[::-1]))
       for bits in (1, 4, 8) for suffix, options in (("", {}), (", top down", {"top_down": True}),
                                                     (", core header", {"core": True}))},
    **{f"BMP black and white, {bits} bits": (bmp(below(1), bits, TWO, used=2), TWO[below(1)], 0) for bits in (1, 4, 8)},
    "BMP, 16 bits": (bmp(below(32767).astype(np.uint16).byteswap(), 16), np.stack(
        [np.floor((below(32767) >> shift & 31) * 255 / 31) for shift in (10, 5, 0)], 2), 1),
    "BMP, 24 bits": (bmp(COLOUR, 24), COLOUR, 0), "BMP, 24 bits, top down": (bmp(COLOUR, 24, top_down=True), COLOUR, 0),
    "BMP, 32 bits": (saved(RGB.convert("RGBA"), "BMP"), COLOUR, 0),
    **{f"PGM P{kind}, maximum {maxval}": (netpbm(below(maxval), kind, maxval), grey(below(maxval), maxval), 0)
       for kind in (2, 5) for maxval in (1, 18, 254, 255, 256, 1023, 65535)},
    **{f"PPM P{kind}, maximum {maxval}": (netpbm(COLOUR % (maxval + 1), kind, maxval),
                                          np.rint(COLOUR % (maxval + 1) * 255. / maxval), 0)
       for kind in (3, 6) for maxval in (1, 18, 254, 255, 256, 1023, 65535)},
    **{f"PBM P{kind}": (netpbm(below(1), kind), grey(1 - below(1), 1), 0) for kind in (1, 4)},
    **{f"TIFF {name}, {bits} bits, {word}, compression {code}": (
        tiff(below(2**bits - 1), bits, photometric, order, code, PACKERS.get(code, bytes)),
        PALETTE[below(2**bits - 1)] if photometric == 3 else
        grey(below(2**bits - 1) if photometric else 2**bits - 1 - below(2**bits - 1), 2**bits - 1), 0)
       for name, photometric in (("grey", 1), ("WhiteIsZero", 0), ("palette", 3)) for bits in (1, 2, 4, 8)
       for word, order in (("little-endian", "<"), ("big-endian", ">")) for code in (1, 5, 8)},
    **{f"TIFF RGB, {bits} bits, {name}": (tiff(COLOUR if bits == 8 else deep(COLOUR), bits, 2, **options),
                                          COLOUR if bits == 8 else deep(COLOUR) >> 8, 0)
       for bits in (8, 16) for name, options in {
           "plain": {}, "big-endian": {"order": ">"}, "planar": {"planar": 2}, "in tiles": {"tile": 16},
           "planar in strips": {"planar": 2, "strips": 3}, "FillOrder 2": {"fill_order": 2}, "big": {"big": True},
           "LZW": {"compression": 5, "encode": imagecodecs.lzw_encode}}.items()},
    **{f"TIFF RGB and {name}": (tiff(np.concatenate([COLOUR, ALPHA], 2), 8, 2, tags=[(338, 3, [kind])]), COLOUR, 0)
       for name, kind in (("something", 0), ("alpha", 2))},
    "TIFF grey and alpha": (tiff(np.concatenate([COLOUR[..., :1], ALPHA], 2), 8, tags=[(338, 3, [2])]),
                            grey(COLOUR[..., 0], 255), 0),
    "TIFF of an 8-bit colour map": (tiff(below(255), 8, 3).replace(
        (PALETTE.T.astype("<u2") * 257).tobytes(), PALETTE.T.astype("<u2").tobytes()), PALETTE[below(255)], 0),
    **{f"TIFF JPEG, {mode}": (saved(SMOOTH_IMAGE.convert(mode), "TIFF", compression="jpeg", quality=95),
                              grey(np.asarray(SMOOTH_IMAGE.convert("L")), 255) if mode == "L" else SMOOTH, 12)
       for mode in ("L", "RGB", "YCbCr")},
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_read_as_a_viewer_shows_them(tmp_path, name):
    content, expected, tolerance = IMAGES[name]
    (tmp_path / "x").write_bytes(content)
    got = files.read_image(tmp_path / "x")
    assert got.dtype == np.uint8 and got.shape == expected.shape and got.flags.c_contiguous
    assert abs(got.astype(int) - expected).max() <= tolerance
    assert files.read_size(tmp_path / "x") == got.shape[1::-1]


REFUSED_IMAGES = {
    "PNG grey, 16 bits": (png(GREY, 16, 0), "16-bit grey PNG"),
    "PNG grey and alpha, 16 bits": (png(np.stack([GREY] * 2, 2), 16, 4), "16-bit grey and alpha PNG"),
    "APNG": (saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]), "8-bit RGB PNG of 2 pictures"),
    "WebP, animated": (saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]), "WebP of 2 pictures"),
    "TIFF of two pages": (tiff(COLOUR, 8, 2, pages=[(GREY, 8, 0)]), "8-bit RGB TIFF (uncompressed) of 3 channels of 2"),
    **{f"TIFF grey, {bits} bits": (tiff(GREY, bits), f"{bits}-bit grey TIFF") for bits in (12, 16, 32)},
    "TIFF signed": (tiff(GREY, 8, sample_format=2), "8-bit signed grey TIFF"),
    "TIFF float": (tiff(GREY, 32, sample_format=3), "32-bit floating-point grey TIFF"),
    "TIFF RGB float": (tiff(COLOUR, 32, 2, sample_format=3), "32-bit floating-point RGB TIFF"),
    "TIFF of several depths": (tiff(COLOUR, 8, 2).replace(struct.pack("<HHH", 8, 8, 8), struct.pack("<HHH", 8, 8, 4)),
                               "8/8/4-bit RGB TIFF"),
    "TIFF CMYK": (tiff(np.concatenate([COLOUR, ALPHA], 2), 8, 5), "8-bit CMYK TIFF (uncompressed) of 4 channels"),
    "TIFF Lab": (tiff(COLOUR, 8, 8), "8-bit Lab TIFF"), "TIFF YCbCr": (tiff(COLOUR, 8, 6), "8-bit YCbCr TIFF"),
    "TIFF multiplied by alpha": (tiff(np.concatenate([COLOUR, ALPHA], 2), 8, 2, tags=[(338, 3, [1])]), "by alpha"),
    **{f"BMP, RLE{bits}": REFUSED_LABELS[f"BMP, RLE{bits}"] for bits in (4, 8)},
    **{name: (content, said) for name, (content, said) in REFUSED_LABELS.items() if name.split()[0] in (
        "GIF", "JPEG", "NumPy", "HDF5", "OpenEXR", "HEIF", "AVIF", "PDF", "ZIP", "PAM", "PFM", "text", "nothing", "PGM",
        "PBM") and name != "JPEG"},
}


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_other_images_are_refused_by_name(tmp_path, name):
    content, said = REFUSED_IMAGES[name]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        files.read_image(tmp_path / "x.png")
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x.png'}: cannot be read as an image (") and said in text and "\n" not in text
    assert text.endswith(".") and ("save" in text or "replace" in text)
    assert inspection.inspect(Sample("x", tmp_path / "x.png", None)).image_error == text


def test_files_cut_short_are_refused(tmp_path):
    """Every kind of file at several places; a TIFF by Pillow has its header first, so that pixels alone are missing."""
    good = {**{name: (write(ids_below(limit, (9, 13))), files.read_label_ids)
               for name, (limit, write) in LABELS.items()},
            **{f"image {name}": (content, files.read_image) for name, (content, *_) in IMAGES.items()
               if name != "JPEG of several pictures"},  # the second is not read
            **{f"pixels of TIFF {c}": (saved(RGB, "TIFF", compression=c), files.read_image)
               for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")}}
    for name, (content, read) in good.items():
        end = len(content)
        if content.startswith(b"\x89PNG"):
            end = content.rfind(b"IEND") - 14  # its checksums follow its pixels
        elif content.startswith(b"BM"):
            end -= 4  # its last row may be filled up
        elif content[:2] in (b"P1", b"P2", b"P3"):
            end = max(content.rstrip().rfind(b" "), content.rstrip().rfind(b"\n"))  # the last word
        for length in (min(20, end - 1), end // 2, end - 1):
            (tmp_path / "x").write_bytes(content[:length])
            with pytest.raises(DataError, match=re.escape(str(tmp_path / "x"))):
                read(tmp_path / "x")
                pytest.fail(f"{name}, {length} bytes")


def test_a_png_of_two_headers_is_refused(tmp_path):
    content = png(GREY, 8, 0)
    (tmp_path / "x.png").write_bytes(content[:33] + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 6, 4, 0, 0, 0, 0))
                                     + content[33:])
    for read in (files.read_label_ids, files.read_image):
        with pytest.raises(DataError, match="header"):
            read(tmp_path / "x.png")


# ---- what else is said -----------------------------------------------------------------------------------------------

def test_the_check_reports_the_same_faults_in_the_same_words(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for folder in ("d/images/train", "d/labels/train"):
        Path(folder).mkdir(parents=True)
    names = ("APNG", "JPEG", "PNG RGB, 8 bits", "TIFF PackBits, 4 bits", "PGM P5 of ids beyond its maximum",
             "BMP, RLE8")
    expected = []
    for i, name in enumerate(names):
        Path(f"d/images/train/{i}.png").write_bytes(png(COLOUR, 8, 2))
        Path(f"d/labels/train/{i}.png").write_bytes(REFUSED_LABELS[name][0])
        with pytest.raises(DataError) as error:
            files.read_label_ids(Path(f"d/labels/train/{i}.png"))
        expected.append(str(error.value))
    Path("d/images/train/9.png").write_bytes(png(COLOUR, 8, 2, after=chunk(b"eXIf", EXIF_6)))
    Path("d/labels/train/9.png").write_bytes(png(GREY, 8, 0))
    Path("c.yml").write_text("source: mine\ntarget: mine\nnum_classes: 2\nneg_rank_width: 0\nworker: 0\n"
                             "mine: {type: folder, data_dir: d, images: 'images/{split}', labels: 'labels/{split}', "
                             "input_size: [16, 16], classes: [a, b]}")
    assert check.main(["--config", "c.yml", "--split", "target_train"]) == 1
    out = capfd.readouterr().out
    assert all(f"error: {text}" in out for text in expected)
    assert "d/images/train/9.png is 6x10 (as displayed: its EXIF orientation is 6)" in out
