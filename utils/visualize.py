"""Label maps in colour, grids of pictures with captions, legends and matrices, as pictures."""
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import one_line

_GAP, _CAPTION_WIDTH, _MARGIN, _CELL_WIDTH = 4, 96, 4, 256  # of a caption in letters of 14 pixels, beside such cells
_LEGEND_WIDTH = 1200  # pixels of a picture whose legend has letters of 14 pixels
_SIDES = 4, 30  # of a matrix's cell: smallest and largest, pixels
_FULL = (8, 48, 107)  # colour of 1 in a matrix; 0 is white
IGNORE_COLOUR = (0, 0, 0)


def colourise(label: np.ndarray, palette: Sequence[Sequence[int]],
              ignore_colour: tuple[int, int, int] = IGNORE_COLOUR) -> Image.Image:
    """RGB image of train ids uint8 [H, W]. palette: colour (red, green, blue) of each id; others get ignore_colour."""
    colours = np.full((256, 3), ignore_colour, np.uint8)
    colours[: len(palette)] = palette
    return Image.fromarray(colours[label])


def grid(rows: list[tuple[str, list[Image.Image]]], cell: tuple[int, int]) -> Image.Image:
    """A picture of rows of pictures: for each (caption, pictures) one row, with the caption to its left.

    A caption may have several lines. cell: (width, height) in pixels to which each picture is resized.
    """
    width, height = cell
    scale = max(1.0, width / _CELL_WIDTH)  # captions grow with the cells
    columns, font = max(len(pictures) for _, pictures in rows), ImageFont.load_default(size=14 * scale)
    lines = [line for caption, _ in rows for line in caption.splitlines()]
    left = max(round(_CAPTION_WIDTH * scale), *(int(font.getlength(line)) + 2 * _MARGIN for line in lines))
    sheet = Image.new("RGB", (left + columns * (width + _GAP), len(rows) * (height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (caption, pictures) in enumerate(rows):
        top = _GAP + r * (height + _GAP)
        draw.text((left // 2, top + height // 2), caption, fill="black", font=font, anchor="mm", align="center")
        for c, picture in enumerate(pictures):
            sheet.paste(resized(picture, cell), (left + c * (width + _GAP), top))
    return sheet


def resized(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The picture at the size (width, height). When it is enlarged, label colours are not blended into colours that
    stand for other classes."""
    return picture.resize(cell, Image.Resampling.NEAREST if picture.width <= cell[0] else Image.Resampling.BOX)


def dimmed(image: Image.Image, bright: np.ndarray) -> Image.Image:
    """An RGB image in which only the pixels of a mask, bool [H, W], keep their colour; the others are dark and grey."""
    pixels = np.asarray(image)
    grey = (0.3 * pixels.mean(2, keepdims=True)).astype(np.uint8)
    return Image.fromarray(np.where(bright[:, :, None], pixels, grey))


def with_legend(picture: Image.Image, names: Sequence[str], palette: Sequence[Sequence[int]]) -> Image.Image:
    """The picture with the name and the colour of each class below it."""
    scale = max(1.0, picture.width / _LEGEND_WIDTH)  # letters grow with the picture
    font, (box, line) = ImageFont.load_default(size=14 * scale), (round(14 * scale), round(22 * scale))
    titles = [one_line(name) for name in names]
    width = min(max(int(font.getlength(title)) for title in titles) + box + 5 * _MARGIN, picture.width)
    columns = max(1, (picture.width - _GAP) // width)
    sheet = Image.new("RGB", (picture.width, picture.height + line * -(-len(titles) // columns) + _GAP), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (title, colour) in enumerate(zip(titles, palette)):
        left, middle = _GAP + i % columns * width, picture.height + line * (i // columns) + line // 2
        draw.rectangle((left, middle - box // 2, left + box, middle + box // 2), tuple(colour), "black")
        draw.text((left + box + 2 * _MARGIN, middle), title, fill="black", font=font, anchor="lm")
    return sheet


def matrix(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], titles: tuple[str, str]) -> Image.Image:
    """A picture of a matrix of numbers in 0..1, float [R, C]: the darker the larger, with percent where there is room.
    NaN is grey. titles: of the rows, and of the columns."""
    smallest, largest = _SIDES
    side = max(smallest, min(largest, 1200 // max(shares.shape)))
    font, small = (ImageFont.load_default(size=size) for size in (min(13, max(6, side - 1)), 11))
    named = [[one_line(name) for name in names] for names in (rows, columns)]
    left, top = (int(max(font.getlength(name) for name in names)) + 2 * _MARGIN + 24 for names in named)
    size = left + side * len(columns) + 2 * _MARGIN, top + side * len(rows) + 2 * _MARGIN
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((left + side * len(columns) // 2, _MARGIN), titles[1], fill="black", font=small, anchor="mt")
    _upright(sheet, titles[0], small, (12, top + side * len(rows) // 2))
    for r, name in enumerate(named[0]):
        middle = top + r * side + side // 2
        draw.text((left - _MARGIN, middle), name, fill="black", font=font, anchor="rm")
        for c, share in enumerate(shares[r]):
            corner = left + c * side, top + r * side
            colour = (225, 225, 225) if np.isnan(share) else tuple(
                round(255 + float(share) * (full - 255)) for full in _FULL)
            draw.rectangle((*corner, corner[0] + side, corner[1] + side), colour, "gainsboro" if side >= 8 else None)
            if side >= 24 and share >= 0.005:
                draw.text((corner[0] + side // 2, middle), f"{100 * share:.0f}", font=small, anchor="mm",
                          fill="white" if share > 0.5 else "black")
    for c, name in enumerate(named[1]):
        length = font.getlength(name)
        _upright(sheet, name, font, (left + c * side + side // 2, top - _MARGIN - int(length) // 2))
    return sheet


def _upright(sheet, text, font, centre):
    """Write a text from bottom to top, around a centre."""
    word = Image.new("RGB", (int(font.getlength(text)) + 2, int(1.4 * font.size)), "white")
    ImageDraw.Draw(word).text((1, word.height // 2), text, fill="black", font=font, anchor="lm")
    word = word.rotate(90, expand=True)
    sheet.paste(word, (centre[0] - word.width // 2, centre[1] - word.height // 2))
