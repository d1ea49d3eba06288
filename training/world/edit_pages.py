"""Pages: scenes with all that an edit may change written down, and their pictures, two at a time.

A page holds the very tones, styles and places, so that two pages that share a thing share its pixels.
"""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from training.world.numbers import INKS
from training.world.rendering import (
    BACKGROUNDS,
    DARK_BACKGROUNDS,
    FONTS,
    MIN_CONTRAST,
    SIDE,
    TONES,
    Nuisance,
    draw_thing,
    finish_alike,
    font,
    outline,
    tone,
)
from training.world.sample import NotAskable, stream
from training.world.scenes import Scene, Thing, reading_order

RGB = tuple[int, int, int]
# What a background can be asked to be; the colours of things are asked for in their first tone.
GROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255), "black": (20, 20, 22), "gray": (185, 185, 185), "light blue": (170, 205, 245),
    "light green": (180, 230, 180), "yellow": TONES["yellow"][0], "blue": TONES["blue"][0], "pink": (250, 190, 210),
    "green": TONES["green"][0], "purple": TONES["purple"][0],
}  # fmt: skip
STYLES = ("plain", "outlined", "striped", "dotted", "bordered")
BORDER = (15, 15, 15)
# Pixels of 128 around what changes that may change with it: antialiasing, and what a blurred picture adds.
MARGIN, BLUR_REACH = 3, 3
LEAST_SEEN = 20  # pixels of 128 that a change must clearly change
BLOCK = 16  # pixels that JPEG stores together


@dataclass(frozen=True)
class Item:
    """A thing as it is painted."""

    thing: Thing
    tone: RGB
    style: str = "plain"


@dataclass(frozen=True)
class Page:
    """Things on a ground. An item keeps its index through edits; None is one that was removed."""

    items: tuple[Item | None, ...]
    ground: RGB

    @property
    def present(self) -> list[int]:
        return [i for i, item in enumerate(self.items) if item is not None]

    @property
    def scene(self) -> Scene:
        return Scene(reading_order([item.thing for item in self.items if item is not None]))

    def transcription(self, said: dict[int, str] | None = None) -> str:
        """The scene's; `said` is how items are said by index, where not by their full names."""
        names = {id(self.items[i].thing): words for i, words in (said or {}).items()}
        scene = self.scene
        return scene.transcription(tuple(names.get(id(thing), thing.full_name) for thing in scene.things))

    def with_item(self, index: int, item: Item | None) -> "Page":
        """A copy in which one item is another; an index at the end adds one."""
        items = list(self.items)
        items[index : index + 1] = [item]
        return replace(self, items=tuple(items))

    @property
    def tones(self) -> list[RGB]:
        return [item.tone for item in self.items if item is not None]


@dataclass(frozen=True)
class TextPage:
    """One line of characters, each in a slot of its own, so that a changed one leaves the others where they are.

    `height` is the font's, `x` the left edge of the line, `y` its middle: fractions of the side.
    """

    text: str
    ink: RGB
    ground: RGB
    font: str
    height: float
    x: float
    y: float

    def transcription(self) -> str:
        return self.text

    @property
    def slot(self) -> float:
        """The width of a character's slot, a fraction of the side."""
        return self.height * slot_ratio(self.font)


@lru_cache
def slot_ratio(name: str) -> float:
    """The widest digit's advance over the font's height."""
    return max(font(name, 100).getlength(c) for c in "0123456789") / 100


def draw_page(rng: random.Random, scene: Scene) -> Page:
    """The scene painted: tones, and a ground they can be seen on."""
    tones = [tone(rng, thing.colour) for thing in scene.things]
    ground = draw_ground(rng, tones)
    items = []
    for thing, colour in zip(scene.things, tones, strict=True):
        if math.dist(colour, ground) < MIN_CONTRAST:
            colour = TONES[thing.colour][0]
        items.append(Item(thing, colour))
    return Page(tuple(items), ground)


def draw_ground(rng: random.Random, tones: list[RGB]) -> RGB:
    choices = DARK_BACKGROUNDS if rng.random() < 0.12 else BACKGROUNDS
    fitting = [g for g in choices if all(math.dist(g, t) >= MIN_CONTRAST for t in tones)]
    return rng.choice(fitting or BACKGROUNDS[:1])


def draw_text_page(rng: random.Random, text: str, fonts=FONTS) -> TextPage:
    """The text at a random place, as large as fits or somewhat smaller."""
    ink = tone(rng, rng.choice(INKS))
    name = rng.choice(fonts)
    height = min(46 / SIDE, 0.92 / (len(text) * slot_ratio(name))) * rng.uniform(0.72, 1.0)
    width = height * slot_ratio(name) * len(text)
    x = rng.uniform(0.03, 0.97 - width)
    y = rng.uniform(0.04 + height / 2, 0.96 - height / 2)
    return TextPage(text, ink, draw_ground(rng, [ink]), name, height, x, y)


@dataclass(frozen=True)
class Pair:
    """Two pictures of one size, and where they differ: 0 nowhere, k >= 1 in the k-th change (height, width)."""

    before: Image.Image
    after: Image.Image
    parts: np.ndarray


def render_pair(before: Page | TextPage, after: Page | TextPage, seed: int, nuisance: Nuisance, size: int) -> Pair:
    """Draws both pages with one nuisance. Raises `NotAskable` where a change would hardly be seen."""
    scale = size / SIDE
    clean = [_paint(page, nuisance, size) for page in (before, after)]
    parts = _footprints(before, after, size, nuisance)
    red, green, blue = np.moveaxis(np.asarray(ImageChops.difference(*clean)), -1, 0)
    apart = np.maximum(np.maximum(red, green), blue)
    if before.ground != after.ground:
        reach = round(BLUR_REACH * scale) if nuisance.blur else 0
        parts[(parts == 0) & _grown(apart > 0, reach)] = parts.max() + 1
    _check_visible(parts, apart, scale)
    first, second = _finish(clean, seed, nuisance, size)
    if nuisance.quality:
        _spread(parts, first, second)
    return Pair(first, second, parts)


def render_page(page: Page | TextPage, seed: int, nuisance: Nuisance, size: int) -> Image.Image:
    """Draws one page just as `render_pair` draws two."""
    return _finish([_paint(page, nuisance, size)], seed, nuisance, size)[0]


def _finish(clean: list[Image.Image], seed: int, nuisance: Nuisance, size: int) -> list[Image.Image]:
    return finish_alike(stream("pixels", seed), clean, replace(nuisance, blur=nuisance.blur * size / SIDE), size)


def _spread(parts: np.ndarray, first: Image.Image, second: Image.Image) -> None:
    """Compression carries a change over its blocks; what differs there belongs to the change."""
    height, width = parts.shape
    padded = np.pad(parts, ((0, -height % BLOCK), (0, -width % BLOCK)))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).max((1, 3))
    # A decoder smooths colours over the edge of the block.
    around = np.asarray(Image.fromarray(blocks).filter(ImageFilter.MaxFilter(3)))
    spread = np.where(blocks > 0, blocks, around).repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    differs = np.asarray(ImageChops.difference(first, second)).any(-1) & (parts == 0)
    parts[differs] = spread[differs]


def _check_visible(parts: np.ndarray, apart: np.ndarray, scale: float) -> None:
    seen = np.bincount(parts.ravel(), weights=(apart > 60).ravel(), minlength=2)[1:]
    if seen.min() < LEAST_SEEN * scale**2:
        raise NotAskable


def _grown(mask: np.ndarray, reach: int) -> np.ndarray:
    if not reach:
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0


def _footprints(before, after, size: int, nuisance: Nuisance) -> np.ndarray:
    """(size, size): the places of changed things, before and after, numbered from 1."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    margin = (MARGIN + (BLUR_REACH if nuisance.blur else 0)) * size / SIDE
    if isinstance(before, TextPage):
        changed = [i for i, (a, b) in enumerate(zip(before.text, after.text, strict=True)) if a != b]
        for number, index in enumerate(changed, 1):
            left, half = before.x + index * before.slot, before.height * 0.5
            draw.rectangle([left * size - margin, (before.y - half) * size - margin,
                            (left + before.slot) * size + margin, (before.y + half) * size + margin],
                           fill=number)  # fmt: skip
        return np.array(image)
    places: list[list[Thing]] = []
    for i in range(len(after.items)):
        old, new = (page.items[i] if i < len(page.items) else None for page in (before, after))
        if old != new:
            for item in filter(None, (old, new)):
                together = next((p for p in places if _share(p, item.thing)), None)
                if together is None:
                    places.append([item.thing])
                else:
                    together.append(item.thing)
    for number, things in enumerate(places, 1):
        for thing in things:
            points = [(x * size, y * size) for x, y in outline(thing)]
            draw.polygon(points, fill=number)
            _stroke(draw, points, number, 2 * margin + 1)
    return np.array(image)


def _share(things: list[Thing], other: Thing) -> bool:
    """Whether what happens here and there is one change: places that overlap."""
    return any(math.hypot(t.x - other.x, t.y - other.y) < max(t.radius, other.radius) for t in things)


def _paint(page: Page | TextPage, nuisance: Nuisance, size: int) -> Image.Image:
    """The page without noise, `size` x `size`."""
    side = size * nuisance.supersampling
    image = Image.new("RGB", (side, side), page.ground)
    draw = ImageDraw.Draw(image)
    if isinstance(page, TextPage):
        letters = font(page.font, max(1, round(page.height * side)))
        for index, character in enumerate(page.text):
            centre = ((page.x + (index + 0.5) * page.slot) * side, page.y * side)
            draw.text(centre, character, font=letters, fill=page.ink, anchor="mm")
    for item in () if isinstance(page, TextPage) else filter(None, page.items):
        if item.style == "plain":
            draw_thing(draw, item.thing, item.tone, nuisance, size)
        else:
            _paint_styled(image, draw, item, side)
    # Three times as fast as `resize`, and within a level of it.
    return image.reduce(nuisance.supersampling) if nuisance.supersampling > 1 else image


def _paint_styled(image: Image.Image, draw: ImageDraw.ImageDraw, item: Item, side: int) -> None:
    thing = item.thing
    points = [(x * side, y * side) for x, y in outline(thing)]
    unit = side / SIDE  # one pixel of the usual size
    if item.style == "outlined":
        _stroke(draw, points, item.tone, 2.2 * unit)
        return
    draw.polygon(points, fill=item.tone)
    if item.style == "bordered":
        _stroke(draw, points, BORDER, 2.6 * unit)
        return
    reach = math.ceil(thing.radius * side) + 1
    left, top = round(thing.x * side) - reach, round(thing.y * side) - reach
    inside = Image.new("L", (2 * reach, 2 * reach))
    ImageDraw.Draw(inside).polygon([(x - left, y - top) for x, y in points], fill=255)
    pattern = Image.new("L", inside.size)
    pen = ImageDraw.Draw(pattern)
    period = max(6.5 * unit, reach / 2)
    if item.style == "striped":
        for offset in np.arange(-2 * reach, 2 * reach, period):
            pen.line([(offset, 2 * reach), (offset + 2 * reach, 0)], fill=255, width=round(period * 0.42))
    else:
        for row, y in enumerate(np.arange(reach % period, 2 * reach, period)):
            for x in np.arange((reach + (row % 2) * period / 2) % period, 2 * reach, period):
                pen.ellipse([x - period * 0.27, y - period * 0.27, x + period * 0.27, y + period * 0.27], fill=255)
    mask = Image.composite(pattern, Image.new("L", inside.size), inside)
    # White on yellow would hardly be seen.
    bright = np.dot(item.tone, (0.3, 0.59, 0.11)) > 170
    image.paste(BORDER if bright else (255, 255, 255), (left, top), mask)
    _stroke(draw, points, item.tone, 1.2 * unit)


def _stroke(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], fill, width: float) -> None:
    """A closed line with round joints, which reach no further than half its width."""
    draw.line([*points, points[0]], fill=fill, width=max(1, round(width)))
    reach = width / 2
    for x, y in points:
        draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)
