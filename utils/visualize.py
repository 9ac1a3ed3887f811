"""Label maps in colour, and grids of pictures with captions."""
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _CAPTION_WIDTH, _MARGIN, _CELL_WIDTH = 4, 96, 4, 256  # of a caption in letters of 14 pixels, beside such cells
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
            # Label colours must not be blended into colours that stand for other classes.
            method = Image.Resampling.NEAREST if picture.width <= width else Image.Resampling.BOX
            sheet.paste(picture.resize(cell, method), (left + c * (width + _GAP), top))
    return sheet
