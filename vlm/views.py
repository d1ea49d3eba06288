"""How a picture becomes views: one square global view, and square local crops where it is large or elongated.

The rules are those of the released model's processor, as vLLM's `Step3VLImageProcessor` applies them (STEP3-VL, arXiv
2601.09668, gives the sizes: 728 global, 504 local). They are written for any two sizes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

# Longer sides are scaled down to this many pixels before anything else.
MAX_SIDE = 3024
# A picture less than this many pixels thin and more than 4 times as long is first padded to a square.
THIN_SIDE = 32
# What is left over after whole windows becomes a window of its own above this share of one.
KEPT_REMAINDER = 0.2


@dataclass(frozen=True)
class ViewPlan:
    """Sizes in pixels.

    padded: the side of the square the picture is padded to, or 0.
    scaled: (width, height) of the picture that the global view is made from.
    cropped: (width, height) of the picture that the crops are cut from.
    window: side of a crop before it is resized, or 0 where there are none.
    columns, rows: the grid of crops.
    """

    padded: int
    scaled: tuple[int, int]
    cropped: tuple[int, int]
    window: int
    columns: int
    rows: int

    @property
    def newlines(self) -> list[bool]:
        """One flag a crop: a `<patch_newline>` follows it, because its row ends and is not the last."""
        return [
            column == self.columns - 1 and row < self.rows - 1
            for row in range(self.rows)
            for column in range(self.columns)
        ]


def plan_views(width: int, height: int, global_side: int, crop_side: int | None) -> ViewPlan:
    """Where the views of a `width` x `height` picture lie. `crop_side` None: the global view alone."""
    padded = 0
    if min(width, height) < THIN_SIDE and max(width, height) > 4 * min(width, height):
        padded = width = height = max(width, height)
    if max(width, height) > MAX_SIDE:
        scale = MAX_SIDE / max(width, height)
        # A 100,000-pixel ribbon may scale to less than one pixel.
        width, height = max(1, int(width * scale)), max(1, int(height * scale))

    window = 0 if crop_side is None else _window(max(width, height), min(width, height), global_side, crop_side)
    if not window:
        return ViewPlan(padded, (width, height), (width, height), 0, 0, 0)
    across, down = _snap(width, window), _snap(height, window)
    return ViewPlan(padded, (width, height), (across, down), window, max(1, across // window), max(1, down // window))


def _window(long: int, short: int, global_side: int, crop_side: int) -> int:
    if long < global_side:
        return short if long / short > 1.5 else 0
    return min(short, crop_side) if long / short > 4 else crop_side


def _snap(length: int, window: int) -> int:
    """The whole number of windows nearest to `length`, which stays as it is when shorter than one."""
    if length < window:
        return length
    # Divided before subtracting: 2100 / 500 leaves just over 0.2 in floating point, and vLLM rounds it up.
    remainder = length / window - length // window
    return window * (length // window + (remainder > KEPT_REMAINDER))


def cut_views(
    picture: Image.Image, plan: ViewPlan, global_side: int, crop_side: int | None, mean: list[float], std: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The views' pixels.

    Args:
        picture: RGB, 8 bits.
        plan: of `plan_views` for this picture's size and these sides.
        mean, std: a channel's mean and deviation on the scale where white is 1.

    Returns:
        (3, global_side, global_side) and (crops, 3, crop_side, crop_side), both float32 and normalised.
    """
    if plan.padded:
        picture = _padded(picture, plan.padded)
    picture = _resized(picture, plan.scaled)
    view = _to_tensor(picture, global_side, mean, std)
    if not plan.window:
        return view, view.new_empty((0, *view.shape))
    picture = _resized(picture, plan.cropped)
    crops = []
    for row in range(plan.rows):
        for column in range(plan.columns):
            left, top = column * plan.window, row * plan.window
            # A picture narrower than its window is continued in black, as Pillow does beyond an edge.
            crop = picture.crop((left, top, left + plan.window, top + plan.window))
            crops.append(_to_tensor(crop, crop_side, mean, std))
    return view, torch.stack(crops)


def _padded(picture: Image.Image, side: int) -> Image.Image:
    """A black square with the picture in its upper left corner."""
    if side > MAX_SIDE:
        # Scaled first: the square of a 100,000-pixel ribbon would be 30 GB, of which a thousandth is kept.
        width, height = (max(1, length * MAX_SIDE // side) for length in picture.size)
        picture, side = _resized(picture, (width, height)), MAX_SIDE
    square = Image.new("RGB", (side, side))
    square.paste(picture, (0, 0))
    return square


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _to_tensor(picture: Image.Image, side: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """(3, side, side). Normalised first and resized in float32, as vLLM does: no second rounding to 8 bits."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32).div(255)
    shape = (-1, 1, 1)
    pixels = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    if pixels.shape[1:] == (side, side):
        return pixels.contiguous()
    resized = F.interpolate(pixels[None], (side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized[0]
