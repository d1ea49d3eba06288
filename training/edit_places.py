"""What an edit of the world makes of each place of the picture, as numbers: what the painter can be told without a
model that sees, and what that model is then taught to say.

A place is a cell of the world's 4 x 4 grid, and a thing belongs to the one its centre is in. The numbers of a place are
0 or 1 but for where in its cell something appears. What can be seen in the picture (how large a recoloured thing is,
how it is turned) is not among them: the painter looks.

A line of text has other places: the n-th stands for its n-th character, wherever that is, for an instruction counts and
the painter sees where the line begins and how wide its characters are.
"""

import string

import numpy as np
import torch
from torch.nn import functional

from training.world.edit_pages import GROUNDS, STYLES, Item, Page, TextPage
from training.world.edit_steps import FACTORS
from training.world.scenes import CELL, COLOURS, GRID, SHAPES, Thing

SIZES = ("small", "medium", "big")
LINES = range(1, GRID + 1)
CHARACTERS = string.digits + string.ascii_uppercase
# In this order: one number for each value. `old` is what goes or is changed here, `new` what comes or becomes of it.
FIELDS: dict[str, tuple] = {
    "is": ("old", "new", "stays", "same tone"),
    "new shape": SHAPES, "new colour": COLOURS, "new size": SIZES, "new style": STYLES,
    "old shape": SHAPES, "old colour": COLOURS, "old size": SIZES,
    "from row": tuple(LINES), "from column": tuple(LINES),
    "factor": tuple(FACTORS),
    "spot": ("across", "down"),
    "new ground": tuple(GROUNDS),
    "new character": tuple(CHARACTERS),
}  # fmt: skip
INDEX = {(name, value): i for i, (name, value) in enumerate((n, v) for n, values in FIELDS.items() for v in values)}
PLACES, NUMBERS = GRID**2, len(INDEX)
# All but the spots are yes or no: as ranges of channels, see `edit.connector`.
SHARPENED = ((0, INDEX["spot", "across"]), (INDEX["spot", "down"] + 1, NUMBERS))
# A spot that is a fifth of half a cell off, 3 of 128 pixels, is as wrong as a yes for a no; by its own square it would
# count 0.04.
SPOT_WEIGHT = 25.0


def importance() -> torch.Tensor:
    """(numbers,): what the squared error of each counts."""
    weights = torch.ones(NUMBERS)
    weights[[INDEX["spot", "across"], INDEX["spot", "down"]]] = SPOT_WEIGHT
    return weights


def describe(before: Page | TextPage, after: Page | TextPage) -> np.ndarray:
    """(places, numbers), float32."""
    told = np.zeros((PLACES, NUMBERS), np.float32)
    if isinstance(before, TextPage):
        for place, (old, new) in enumerate(zip(before.text, after.text, strict=True)):
            if old != new:
                told[place, INDEX["new character", new]] = 1
        return told
    for i, new in enumerate(after.items):
        old = before.items[i] if i < len(before.items) else None
        if old != new:
            _tell(told, old, new)
    if before.ground != after.ground:
        name = next(name for name, rgb in GROUNDS.items() if rgb == after.ground)
        told[:, INDEX["new ground", name]] = 1
    return told


def _tell(told: np.ndarray, old: Item | None, new: Item | None) -> None:
    if old is not None:
        _mark(told, old.thing, ("is", "old"), ("old shape", old.thing.shape), ("old colour", old.thing.colour),
              ("old size", old.thing.size))  # fmt: skip
    if new is None:
        return
    thing = new.thing
    _mark(told, thing, ("is", "new"), ("new shape", thing.shape), ("new colour", thing.colour),
          ("new size", thing.size), ("new style", new.style))  # fmt: skip
    if old is not None:
        if old.tone == new.tone:
            _mark(told, thing, ("is", "same tone"))
        if thing.radius != old.thing.radius:
            ratio = thing.radius / old.thing.radius
            _mark(told, thing, ("factor", min(FACTORS, key=lambda name: abs(FACTORS[name] - ratio))))
        if (thing.x, thing.y) == (old.thing.x, old.thing.y):
            _mark(told, thing, ("is", "stays"))
            return
        _mark(told, thing, ("from row", old.thing.row), ("from column", old.thing.column))
    for axis, centre in (("across", thing.x), ("down", thing.y)):
        told[_place(thing), INDEX["spot", axis]] = 2 * (centre / CELL % 1) - 1


def _mark(told: np.ndarray, thing: Thing, *values: tuple) -> None:
    for value in values:
        told[_place(thing), INDEX[value]] = 1


def _place(thing: Thing) -> int:
    return (thing.row - 1) * GRID + thing.column - 1


def spelled(places: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, places, numbers) as tokens of the text stream: their first channels, and nothing in the others.

    Nothing is in those of a place that is not known either.
    """
    return functional.pad(places.nan_to_num(), (0, width - NUMBERS))
