"""Writers of image files for tests, byte by byte after the formats' specifications: no library that stretches, inverts
or turns anything stands between an array and its file. Arrays are integers [H, W] or [H, W, channels]."""
import io
import struct
import zlib

import numpy as np
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def packed(array, bits, order=">"):
    """Rows of samples, each row padded to whole bytes, the first sample in the high bits."""
    rows = np.asarray(array).reshape(len(array), -1)
    assert array.size == 0 or array.max() < 2**bits
    if bits in (8, 16, 32, 64):
        return [row.astype(f"{order}{'i' if array.min() < 0 else 'u'}{bits // 8}").tobytes() for row in rows]
    out = []
    for row in rows.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        out.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return out


# ---- PNG -------------------------------------------------------------------------------------------------------------

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array, bits, colour, interlaced=False, before=b"", after=b""):
    """colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha; chunks `before` and `after` the pixels."""
    parts = [array[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [array]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, bits))
    palette = chunk(b"PLTE", PALETTE[:2**bits].tobytes()) if colour == 3 else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *array.shape[1::-1], bits, colour, 0, 0,
                                                              interlaced))
            + (before if before[4:8] != b"tRNS" else b"") + palette + (before if before[4:8] == b"tRNS" else b"")
            + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b""))


PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)


# ---- TIFF ------------------------------------------------------------------------------------------------------------

def tiff(array, bits, photometric=1, order="<", compression=1, encode=lambda rows: rows, fill_order=1, planar=1,
         strips=1, tile=None, sample_format=1, big=False, tags=(), pages=()):
    """encode: bytes of a strip -> compressed bytes. `tags`: further (number, type, values); 3 is 16 bits, 4 is 32.
    `pages`: further pages, as (array, bits, NewSubfileType)."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    planes = [array] if planar == 1 else [array[:, :, i] for i in range(channels)] if channels > 1 else [array]
    blocks, layout = [], ()
    height, width = array.shape[:2]
    for plane in planes:
        if tile:
            layout = ((322, 4, [tile]), (323, 4, [tile]))
            margin = [(0, -height % tile), (0, -width % tile)] + [(0, 0)] * (plane.ndim - 2)
            full = np.pad(plane, margin)
            blocks += [full[y:y + tile, x:x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
        else:
            rows = -(-height // strips)
            layout = ((278, 4, [rows]),)
            blocks += [plane[y:y + rows] for y in range(0, height, rows)]
    data = [encode(b"".join(packed(block, bits, order))) for block in blocks]
    data = [block.translate(REVERSED) if fill_order == 2 else block for block in data]
    base = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [compression]),
            (262, 3, [photometric]), (266, 3, [fill_order]), (277, 3, [channels]), (284, 3, [planar]),
            (339, 3, [sample_format] * channels), *layout, *tags]
    if photometric == 3:
        base.append((320, 3, (PALETTE[:2**bits].T.astype(int) * 257).ravel().tolist()))
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + ("HHH" if big else "H"),
                                                                     *((43, 8, 0) if big else (42,))))
    word, count = ("Q", "Q") if big else ("I", "H")
    hole = len(out)
    out += struct.pack(order + word, 0)
    everything = [(base, data)] + [
        ([(254, 4, [kind]), (256, 4, [a.shape[1]]), (257, 4, [a.shape[0]]), (258, 3, [b]), (259, 3, [1]), (262, 3, [1]),
          (277, 3, [1]), (278, 4, [len(a)])], [b"".join(packed(a, b, order))]) for a, b, kind in pages]
    for entries, blocks in everything:
        offsets = []
        for block in blocks:
            offsets.append(len(out))
            out += block + b"\0" * (len(block) % 2)
        names = (324, 325) if tile else (273, 279)
        entries = sorted([*entries, (names[0], 4, offsets), (names[1], 4, [len(b) for b in blocks])])
        written = []
        for number, kind, values in entries:
            value = (bytes(values) if kind in (1, 2, 7) else
                     struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values))
            if len(value) > struct.calcsize(order + word):
                where = len(out)
                out += value + b"\0" * (len(value) % 2)
                value = struct.pack(order + word, where)
            written.append(struct.pack(order + "HH" + word, number, kind, len(values))
                           + value.ljust(struct.calcsize(order + word), b"\0"))
        struct.pack_into(order + word, out, hole, len(out))
        out += struct.pack(order + count, len(entries)) + b"".join(written)
        hole = len(out)
        out += struct.pack(order + word, 0)
    return bytes(out)


# ---- BMP and Netpbm --------------------------------------------------------------------------------------------------

def bmp(array, bits, palette=None, top_down=False, core=False, used=0, rle=None):
    """palette: uint8 [n, 3] RGB. `core`: the oldest header. `rle`: run-length encoded bytes instead of the rows."""
    height, width = array.shape[:2]
    bgr = array[:, :, ::-1] if array.ndim == 3 else array
    rows = [row + b"\0" * (-len(row) % 4) for row in packed(bgr, 8 if array.ndim == 3 else bits)]
    data = rle or b"".join(rows if top_down else rows[::-1])
    colours = b"" if palette is None else b"".join(bytes(c[::-1]) + b"\0" * (not core) for c in palette.tolist())
    if core:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        compression = 0 if rle is None else {8: 1, 4: 2}[bits]
        header = struct.pack("<IiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, compression,
                             len(data), 0, 0, used, 0)
    start = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + colours + data


def netpbm(array, kind, maxval=1, comment=""):
    """kind 1 to 6: plain PBM, PGM, PPM, then binary."""
    height, width = array.shape[:2]
    head = f"P{kind}\n{comment}{width} {height}\n" + ("" if kind in (1, 4) else f"{maxval}\n")
    if kind <= 3:
        return (head + "\n".join(" ".join(map(str, row)) for row in array.reshape(height, -1).tolist()) + "\n").encode()
    return head.encode() + b"".join(packed(array, 1 if kind == 4 else 8 if maxval < 256 else 16))


# ---- what to write ---------------------------------------------------------------------------------------------------

def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ids_below(limit, size, seed=0):
    return np.random.default_rng([seed, *size]).integers(0, limit, size)


GREY = ids_below(19, (6, 10))
COLOUR = np.random.default_rng(2).integers(0, 256, (6, 10, 3))
RGB = Image.fromarray(COLOUR.astype(np.uint8))
Y, X = np.mgrid[:40, :56]
SMOOTH = np.stack([X * 4, Y * 6, X + 2 * Y], 2).astype(np.uint8)  # survives a JPEG
SMOOTH_IMAGE = Image.fromarray(SMOOTH)
