"""What an editor did, to judge at a glance: input, instruction, output, truth."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from training.world.edits import Edit
from training.world.rendering import font

MARGIN, GAP, LINE, LINES = 10, 4, 13, 3
COLUMNS = ("input", "output", "truth")


def results_sheet(edits: Sequence[Edit], painted: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """A PNG with every edit's input, output and truth side by side and its instruction below.

    Chinese instructions are named by their family alone: the fonts that every machine has cannot write them.
    """
    side = edits[0].before.width
    width, height = 3 * side + 2 * GAP + 2 * MARGIN, side + 2 * MARGIN + (LINES + 1) * LINE
    sheet = Image.new("RGB", (columns * width, -(-len(edits) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (edit, result) in enumerate(zip(edits, painted, strict=True)):
        x, y = index % columns * width + MARGIN, index // columns * height + MARGIN
        score = edit.verifier(result)
        for place, (name, picture) in enumerate(zip(COLUMNS, (edit.before, result, edit.after), strict=True)):
            left = x + place * (side + GAP)
            draw.text((left, y), name, font=font("DejaVuSans", 9), fill="gray")
            sheet.paste(picture, (left, y + LINE))
            draw.rectangle([left - 1, y + LINE - 1, left + side, y + LINE + side], outline="silver")
        asked = edit.instruction if edit.language == "en" else "(asked in Chinese)"
        lines = textwrap.wrap(f"{edit.family}: {asked}", 62)[: LINES - 1]
        verdict = "done" if score.success else "not done"
        lines.append(f"{verdict}: change {score.change:.2f}, preservation {score.preservation:.2f}")
        draw.multiline_text((x, y + LINE + side + 2), "\n".join(lines), font=font("DejaVuSans", 10), fill="black",
                            spacing=1)  # fmt: skip
    return sheet
