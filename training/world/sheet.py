"""Contact sheets: many samples on one PNG, to look at."""

import textwrap

from PIL import Image, ImageDraw

from training.world.edits import EDIT_FAMILIES, draw_edit
from training.world.families import FAMILIES, draw_sample
from training.world.rendering import SIDE, font

MARGIN, CAPTION_LINES, LINE = 10, 5, 13


def contact_sheet(split: str = "test", columns: int = 6, seed: int = 0, families=FAMILIES) -> Image.Image:
    """A row a family, `columns` pictures a row, each with its question and answer below."""
    _check(columns)
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


def edit_sheet(split: str = "test", columns: int = 4, seed: int = 0, families=EDIT_FAMILIES) -> Image.Image:
    """A row a family, `columns` edits a row: before and after side by side, the instruction below.

    Instructions are the English ones: the fonts that every machine has know no Chinese characters.
    """
    _check(columns)
    gap, lines_of_text = 4, 4
    width, height = 2 * SIDE + gap + 2 * MARGIN, SIDE + 2 * MARGIN + lines_of_text * LINE
    sheet = Image.new("RGB", (columns * width, len(families) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, family in enumerate(families):
        for column in range(columns):
            edit = draw_edit(seed + column, split, family, "en")
            x, y = column * width + MARGIN, row * height + MARGIN
            sheet.paste(edit.before, (x, y))
            sheet.paste(edit.after, (x + SIDE + gap, y))
            for left in (x, x + SIDE + gap):
                draw.rectangle([left - 1, y - 1, left + SIDE, y + SIDE], outline="silver")
            lines = textwrap.wrap(f"{family}: {edit.instruction}", 44)[:lines_of_text]
            draw.multiline_text((x, y + SIDE + 2), "\n".join(lines), font=font("DejaVuSans", 10), fill="black",
                                spacing=1)  # fmt: skip
    return sheet


def _check(columns: int) -> None:
    if columns < 1:
        raise ValueError(f"columns {columns} leaves nothing to draw; give at least 1.")
