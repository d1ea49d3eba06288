"""A contact sheet: many samples on one PNG, to look at."""

import textwrap

from PIL import Image, ImageDraw

from training.world.families import FAMILIES, draw_sample
from training.world.rendering import SIDE, font

MARGIN, CAPTION_LINES, LINE = 10, 5, 13


def contact_sheet(split: str = "test", columns: int = 6, seed: int = 0, families=FAMILIES) -> Image.Image:
    """A row a family, `columns` pictures a row, each with its question and answer below."""
    width, height = SIDE + 2 * MARGIN + 40, SIDE + 2 * MARGIN + CAPTION_LINES * LINE
    sheet = Image.new("RGB", (columns * width, len(families) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, family in enumerate(families):
        for column in range(columns):
            sample = draw_sample(seed + column, split, family)
            x, y = column * width + MARGIN, row * height + MARGIN
            sheet.paste(sample.picture, (x, y))
            lines = textwrap.wrap(f"{family}: {sample.prompt}", 29)[: CAPTION_LINES - 1]
            lines.append(f"→ {sample.answer}"[:32])
            for i, line in enumerate(lines):
                draw.text((x, y + SIDE + 2 + i * LINE), line, font=font("DejaVuSans", 10), fill="black")
    return sheet
