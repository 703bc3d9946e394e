"""The contact sheet: the world's words and some pictures with their captions, for people."""

import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scenes_render import silhouette
from scenes_world import COLOURS, SHAPES

PAPER, INK, FAINT = (250, 249, 246), (35, 35, 40), (120, 120, 125)
WIDTH, MARGIN = 1400, 24
CELL, PICTURE = 225, 176  # pixels: a picture with its captions, and the picture alone
CAPTION_LINES, CAPTION_CHARS = 6, 36


class Sheet:
    """A page that grows downwards."""

    def __init__(self):
        self._image = Image.new("RGB", (WIDTH, 400), PAPER)
        self._y = MARGIN
        self._fonts = {size: ImageFont.load_default(size) for size in (12, 13, 18)}

    def _draw(self, height):
        """A pen for the next `height` pixels."""
        if self._y + height + MARGIN > self._image.height:
            taller = Image.new("RGB", (WIDTH, self._y + height + MARGIN), PAPER)
            taller.paste(self._image)
            self._image = taller
        return ImageDraw.Draw(self._image)

    def heading(self, text, note=""):
        """A line of large type, and a fainter note behind it."""
        draw = self._draw(30)
        draw.text((MARGIN, self._y), text, INK, self._fonts[18])
        at = MARGIN + draw.textlength(text, self._fonts[18]) + 14
        draw.text((at, self._y + 5), note, FAINT, self._fonts[13])
        self._y += 32

    def swatches(self, images, labels):
        """Small images with a word under each; the words that are no basic ones are fainter.

        Args:
            images: list of uint8 [height, width, 3].
            labels: list of (word, whether it is basic).
        """
        step = 80
        per_row = (WIDTH - 2 * MARGIN) // step
        for start in range(0, len(images), per_row):
            draw = self._draw(70)
            for column, (pixels, (word, basic)) in enumerate(zip(
                    images[start:start + per_row], labels[start:start + per_row], strict=True)):
                x = MARGIN + column * step
                self._image.paste(Image.fromarray(pixels), (x, self._y))
                draw.text((x, self._y + pixels.shape[0] + 2), word, INK if basic else FAINT,
                          self._fonts[13])
            self._y += 66
        self._y += 10

    def pictures(self, images, captions):
        """Pictures, enlarged without smoothing, with their captions under them.

        Args:
            images: uint8 [pictures, size, size, 3].
            captions: for each picture a list of str.
        """
        per_row = (WIDTH - 2 * MARGIN) // CELL
        for start in range(0, len(images), per_row):
            rows = [_wrapped(texts) for texts in captions[start:start + per_row]]
            height = PICTURE + 8 + 15 * max(map(len, rows))
            draw = self._draw(height)
            for column, (pixels, lines) in enumerate(zip(images[start:start + per_row], rows,
                                                         strict=True)):
                x = MARGIN + column * CELL
                picture = Image.fromarray(pixels).resize((PICTURE, PICTURE), Image.NEAREST)
                self._image.paste(picture, (x, self._y))
                for number, (line, first) in enumerate(lines):
                    draw.text((x, self._y + PICTURE + 5 + 15 * number), line,
                              INK if first else FAINT, self._fonts[12])
            self._y += height + 14
        self._y += 6

    def png(self):
        """The sheet as PNG bytes."""
        buffer = io.BytesIO()
        page = Image.new("RGB", (WIDTH, self._y + MARGIN), PAPER)
        page.paste(self._image)
        page.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def _wrapped(texts):
    """Captions as lines [(line, whether it is of the first caption)], as many as there is room for.
    """
    lines = []
    for number, text in enumerate(texts):
        more = textwrap.wrap(text, CAPTION_CHARS)
        if number and len(lines) + len(more) > CAPTION_LINES:
            continue
        lines += [(line, number == 0) for line in more]
    return lines


def contact_sheet(sections):
    """Draws the sheet.

    Args:
        sections: list of (heading, note, images uint8 [pictures, size, size, 3], captions: a list
            of str for each picture).

    Returns:
        PNG bytes.
    """
    sheet = Sheet()
    sheet.heading(f"{len(COLOURS)} colors", "basic words in black, rarer words in gray")
    sheet.swatches([np.broadcast_to(np.array(colour.rgb, np.uint8), (36, 68, 3)).copy()
                    for colour in COLOURS.values()],
                   [(word, not colour.split) for word, colour in COLOURS.items()])
    sheet.heading(f"{len(SHAPES)} shapes")
    sheet.swatches([_figure(word) for word in SHAPES],
                   [(word, not shape.split) for word, shape in SHAPES.items()])
    for heading, note, images, captions in sections:
        if len(images):
            sheet.heading(heading, note)
            sheet.pictures(images, captions)
    return sheet.png()


def _figure(word):
    """The outline of a shape word in ink on paper, uint8 [height, width, 3]."""
    mask = Image.fromarray(silhouette(word).astype(np.uint8) * 255).resize((44, 44), Image.BOX)
    figure = Image.new("RGB", (44, 44), PAPER)
    figure.paste(INK, (0, 0), mask)
    return np.array(figure)
