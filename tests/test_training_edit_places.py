"""What an edit makes of each place, in numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.edit_places import INDEX, NUMBERS, PLACES, describe, spelled
from training.world.edit_pages import GROUNDS, Item, Page, TextPage
from training.world.edits import EDIT_FAMILIES, draw_edit
from training.world.sample import SPLITS
from training.world.scenes import Thing

STAR = Item(Thing("star", "red", "small", 0.6, 0.1, 0.05, 10.0), (220, 40, 40))  # row 1, column 3
RING = Item(Thing("ring", "blue", "big", 0.125, 0.875, 0.11, 0.0), (45, 90, 215))  # row 4, column 1


def _told(before: list, after: list, ground: str = "white") -> dict:
    page = Page(tuple(before), GROUNDS["white"])
    numbers = describe(page, Page(tuple(after), GROUNDS[ground]))
    names = {i: name for name, i in INDEX.items()}
    return {
        place: {names[i]: float(own[i]) for i in own.nonzero()[0]} for place, own in enumerate(numbers) if own.any()
    }


OLD_STAR = {("is", "old"): 1, ("old shape", "star"): 1, ("old colour", "red"): 1, ("old size", "small"): 1}
NEW_STAR = {("is", "new"): 1, ("new shape", "star"): 1, ("new colour", "red"): 1, ("new size", "small"): 1,
            ("new style", "plain"): 1}  # fmt: skip
SAME = {("is", "stays"): 1, ("is", "same tone"): 1}


def test_each_kind_of_change_is_told():
    assert _told([STAR, RING], [STAR, RING]) == {}
    assert _told([STAR, RING], [None, RING]) == {2: OLD_STAR}
    striped = replace(STAR, style="striped")
    plain_to_striped = OLD_STAR | NEW_STAR | SAME | {("new style", "striped"): 1}
    del plain_to_striped["new style", "plain"]
    assert _told([STAR], [striped]) == {2: plain_to_striped}
    grown = replace(STAR, thing=replace(STAR.thing, radius=0.1, size="big"))
    told = _told([STAR], [grown])[2]
    assert told["factor", "double"] == 1 and told["new size", "big"] == 1 and told["is", "stays"] == 1
    blue = replace(STAR, thing=replace(STAR.thing, colour="blue"), tone=(0, 0, 255))
    told = _told([STAR], [blue])[2]
    assert told["new colour", "blue"] == 1 and ("is", "same tone") not in told and told["is", "stays"] == 1


def test_what_comes_is_told_where_it_stands_and_whence_it_came():
    across = {("spot", "across"): pytest.approx(-0.2, abs=1e-5), ("spot", "down"): pytest.approx(-0.2, abs=1e-5)}
    assert _told([RING], [RING, STAR]) == {2: NEW_STAR | across}
    moved = replace(STAR, thing=replace(STAR.thing, x=0.875, y=0.375))  # the middle of row 2, column 4
    assert _told([STAR], [moved]) == {
        2: OLD_STAR,
        7: NEW_STAR | {("is", "same tone"): 1, ("from row", 1): 1, ("from column", 3): 1},
    }


def test_a_new_ground_is_told_everywhere():
    told = _told([STAR, None], [STAR, None], ground="pink")
    assert told == {place: {("new ground", "pink"): 1} for place in range(PLACES)}


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([family for family in EDIT_FAMILIES if family != "text"]))
def test_told_is_where_the_pages_differ(seed, family):
    edit = draw_edit(seed, "train", family, size=64)
    before, after = edit.pages
    numbers = describe(before, after)
    assert numbers.shape == (PLACES, NUMBERS) and np.abs(numbers).max() == 1
    changed = set()
    for i, new in enumerate(after.items):
        old = before.items[i] if i < len(before.items) else None
        if old != new:
            changed |= {4 * (item.thing.row - 1) + item.thing.column - 1 for item in (old, new) if item is not None}
    touched = set(np.flatnonzero(numbers[:, :2].any(1)))
    assert touched == changed
    assert (before.ground != after.ground) == bool(numbers[0, INDEX["new ground", "white"] :].any())


def test_of_a_line_of_text_the_places_are_its_characters():
    page = TextPage("4712", (0, 0, 0), GROUNDS["white"], "DejaVuSans", 0.2, 0.1, 0.5)
    numbers = describe(page, replace(page, text="4092"))
    names = {i: name for name, i in INDEX.items()}
    assert [(place, *names[i]) for place, i in zip(*numbers.nonzero(), strict=True)] == [
        (1, "new character", "0"), (2, "new character", "9"),
    ]  # fmt: skip


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_every_line_of_text_can_be_told(seed, split):
    before, after = draw_edit(seed, split, "text", size=32).pages
    numbers = describe(before, after)
    changed = [i for i, (old, new) in enumerate(zip(before.text, after.text, strict=True)) if old != new]
    assert numbers.any(1).nonzero()[0].tolist() == changed and numbers.sum() == len(changed)


def test_what_is_not_known_is_told_as_nothing():
    assert not spelled(torch.full((1, PLACES, NUMBERS), torch.nan), NUMBERS + 5).any()


def test_numbers_come_first_in_a_token():
    places = torch.rand(2, PLACES, NUMBERS)
    tokens = spelled(places, NUMBERS + 5)
    assert tokens.shape == (2, PLACES, NUMBERS + 5)
    assert torch.equal(tokens[..., :NUMBERS], places) and not tokens[..., NUMBERS:].any()
