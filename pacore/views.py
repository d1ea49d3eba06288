"""Views: every trajectory sees the pictures a little differently, so that errors of perception are independent.

Nothing that a question may be about changes: no flips and no turns (left is left, digits stay digits), edges lose at
most a few hundredths, tones stay in their order.
"""

import random

from PIL import Image, ImageEnhance

from vlm.pictures import open_picture

MOST_CUT = 0.03  # of a side, at each edge
SCALES = (0.8, 1.25)
CONTRASTS = (0.9, 1.1)


def view_of(picture: Image.Image, seed: int) -> Image.Image:
    """A crop of at least 94 % of each side, scaled by 0.8 to 1.25, its contrast by 0.9 to 1.1."""
    rng = random.Random(seed)
    width, height = picture.size
    left, right = (rng.uniform(0, MOST_CUT) * width for _ in range(2))
    top, bottom = (rng.uniform(0, MOST_CUT) * height for _ in range(2))
    scale = rng.uniform(*SCALES)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    seen = picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, width - right, height - bottom))
    return ImageEnhance.Contrast(seen).enhance(rng.uniform(*CONTRASTS))


def with_views(conversation: list[dict], index: int, seed: int) -> list[dict]:
    """The conversation as trajectory `index` sees it; the first one sees the pictures as they are.

    Raises PictureError where a picture cannot be read.
    """
    if index == 0:
        return conversation

    def seen(place: int, part: dict) -> dict:
        return (
            part if part["type"] != "image" else {**part, "image": view_of(open_picture(part["image"]), seed + place)}
        )

    return [
        turn if isinstance(turn["content"], str)
        else {**turn, "content": [seen(100 * t + p, part) for p, part in enumerate(turn["content"])]}
        for t, turn in enumerate(conversation)
    ]  # fmt: skip
