"""Edits to scores: was what was asked done, and was everything else left alone? A pure function of pictures.

Both are measured against the rendered truth, after a small blur, and each pixel may take the best of nine positions up
to half a pixel away: neither a slight shift nor a decoder's softness nor a codec's noise is an edit.

The thresholds were fixed before any editor was trained, on edits of the split `train`, as many of each family. Results
that should pass did: the truth itself 36 of 36; moved by half a pixel 396 of 396; blurred and grained as a small
autoencoder does, at 30 dB on average 299 of 300, at 27 dB 277 of 300. Those that should not did not: the picture as it
was 0 of 36; another instruction carried out on the same scene 0 of 338; the right kind of edit on the wrong thing 1 of
389; the right edit with a drifted background (by 16 of RGB, where no new background was asked for) 0 of 358.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

WORKING_SIDE = 128  # larger pictures are compared at this longest side, so that thresholds mean the same at any size
LARGEST_SIDE = 8192
BLUR, COLOUR_BLUR = 1.0, 2.0  # pixels of the working size
UNSEEN = 12.0  # distance in RGB, after the blur, that counts as none
WRONG = 60.0  # ... that counts as fully wrong; the two nearest named colours are 76 apart
WINDOW = 7  # pixels; about the smallest thing of the world
DRIFT_LIMIT = 30.0  # mean distance over all that should stay at which nothing counts as preserved

CHANGE_THRESHOLD = 0.7
PRESERVATION_THRESHOLD = 0.65


class EditScore(NamedTuple):
    """What `verify_edit` found.

    Attributes:
        change: 0 to 1, the least done of the asked changes: 0 for an unedited copy, 1 for the truth.
        preservation: 0 to 1, how well the rest was kept: 1 where nothing else changed.
        success: both at or over `CHANGE_THRESHOLD` and `PRESERVATION_THRESHOLD`.
    """

    change: float
    preservation: float
    success: bool


def verify_edit(before: Image.Image, truth: Image.Image, result: Image.Image, changed: np.ndarray) -> EditScore:
    """Scores an edited picture.

    Args:
        before: the picture that was to be edited, RGB.
        truth: the right result, RGB, of the same size.
        result: what is judged, RGB; another size is resized to the truth's.
        changed: (height, width) of the truth. Either booleans, where the truth may differ from `before`; or integers,
            0 where it may not and k >= 1 where the k-th asked change is, each of which has to be done.

    Change, of one asked change, is the lesser of two shares: of what was wrong with `before` in its region, how much is
    put right; and in the worst window of 7 x 7 pixels around its pixels, how much is right. The least over all asked
    changes counts, so that one of three steps undone is not two thirds of a success. Preservation looks at all pixels
    that `truth` leaves as they were: the worst window there (a small thing lost), and the mean (a tint).

    Raises:
        TypeError: something is not a picture; ValueError: not RGB, without sane size, `changed` of another size or
        without a change that can be seen.
    """
    for picture, name in ((before, "before"), (truth, "truth"), (result, "result")):
        _check(picture, name)
    if before.size != truth.size:
        raise ValueError(f"before is {before.size} and truth {truth.size}; both must have one size.")
    parts = np.asarray(changed)
    if parts.shape != truth.size[::-1] or parts.dtype.kind not in "biu":
        raise ValueError(
            f"changed is {parts.dtype} of shape {parts.shape}; give booleans or integers of shape {truth.size[::-1]}."
        )
    if result.size != truth.size:
        result = result.resize(truth.size, Image.Resampling.BICUBIC)
    size = _working_size(truth.size)
    if size != truth.size:
        before, truth, result = (p.resize(size, Image.Resampling.BOX) for p in (before, truth, result))
        parts = np.asarray(Image.fromarray(parts.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    wanted = _soft(truth)
    undone, wrong = _distance(_soft(before), wanted), _distance(_soft(result), wanted)
    change = _change(undone, wrong, parts)
    preservation = _preservation(undone, wrong)
    success = change >= CHANGE_THRESHOLD and preservation >= PRESERVATION_THRESHOLD
    return EditScore(change, preservation, success)


def _check(picture: Image.Image, name: str) -> None:
    if not isinstance(picture, Image.Image):
        raise TypeError(f"{name} is a {type(picture).__name__}; give a PIL picture.")
    if picture.mode != "RGB":
        raise ValueError(f"{name} is in mode {picture.mode}; give RGB, for example `picture.convert('RGB')`.")
    if not (min(picture.size) >= 8 and max(picture.size) <= LARGEST_SIDE):
        raise ValueError(f"{name} is {picture.width} x {picture.height} pixels; sides of 8 to {LARGEST_SIDE} are read.")


def _working_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, WORKING_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _soft(picture: Image.Image) -> np.ndarray:
    """(height, width, 3), about 0 to 255: brightness slightly blurred, colour a little more, as codecs store them."""
    fine, coarse = (np.asarray(picture.filter(ImageFilter.GaussianBlur(r)), np.float32) for r in (BLUR, COLOUR_BLUR))
    return coarse + (fine.mean(-1) - coarse.mean(-1))[..., None]


def _distance(picture: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(height, width): how far each pixel is from what is wanted, at the best of nine positions half a pixel apart."""
    nearest = np.full(wanted.shape[:2], np.inf, dtype=np.float32)
    for across in _shifted(picture, axis=1):
        for moved in _shifted(across, axis=0):
            difference = moved - wanted
            np.minimum(nearest, np.einsum("hwc,hwc->hw", difference, difference), out=nearest)
    return np.sqrt(nearest)


def _shifted(picture: np.ndarray, axis: int):
    """The picture itself, and half a pixel to either side."""
    yield picture
    edges = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = np.pad(picture, edges, mode="edge")
    between = 0.5 * (padded[1:] + padded[:-1] if axis == 0 else padded[:, 1:] + padded[:, :-1])
    yield between[1:] if axis == 0 else between[:, 1:]
    yield between[:-1] if axis == 0 else between[:, :-1]


def _change(undone: np.ndarray, wrong: np.ndarray, parts: np.ndarray) -> float:
    least = 1.0
    labels = [label for label in np.unique(parts) if label]
    # Around its pixels, not of them alone: a small thing lost on a new background is half in it and half out.
    windows = _right_in_windows(_excess(wrong))
    for label in labels:
        inside = parts == label
        asked = np.where(inside, _excess(undone), 0)
        if not asked.any():
            raise ValueError(f"change {int(label)} cannot be seen: before and truth look alike there.")
        left = np.where(inside, _excess(wrong), 0)
        least = min(least, 1.0 - float(left.sum() / asked.sum()), float(windows[inside].min()))
    if not labels:
        raise ValueError("changed marks no pixel; there is no change to judge.")
    return max(0.0, least)


def _preservation(undone: np.ndarray, wrong: np.ndarray) -> float:
    kept = undone <= UNSEEN
    if not kept.any():
        return 1.0
    drift = float(np.clip(wrong - undone, 0, None)[kept].mean())
    windows = _right_in_windows(np.where(kept, _excess(wrong), 0))
    return max(0.0, min(1.0 - drift / DRIFT_LIMIT, float(windows.min())))


def _excess(distance: np.ndarray) -> np.ndarray:
    return np.clip(distance - UNSEEN, 0, WRONG - UNSEEN)


def _right_in_windows(excess: np.ndarray) -> np.ndarray:
    """(height, width): the share that is right in the window around each pixel, from a table of sums."""
    sums = np.pad(excess, WINDOW // 2 + 1).cumsum(0, dtype=np.float64).cumsum(1)[:-1, :-1]
    inside = sums[WINDOW:, WINDOW:] - sums[:-WINDOW, WINDOW:] - sums[WINDOW:, :-WINDOW] + sums[:-WINDOW, :-WINDOW]
    return 1.0 - inside / (WINDOW**2 * (WRONG - UNSEEN))
