"""Single edits of a page: who is meant, what becomes of it, and how it is said.

What is new is always the same for the same words (the first tone of a colour, one radius a size class, the middle of a
cell), so that a picture has one right result.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from training.world import edit_phrases as phrases
from training.world.edit_pages import BORDER, GROUNDS, STYLES, Item, Page, TextPage
from training.world.edit_phrases import DIRECTIONS, Reference
from training.world.rendering import TONES
from training.world.sample import NotAskable
from training.world.scenes import CELL, CELLS, COLOURS, HELD_OUT_PAIRS, SHAPES, Thing

# Held-out compositions of backgrounds: this ground is never asked for where things of this colour are.
HELD_OUT_GROUNDS = frozenset({
    ("black", "yellow"), ("gray", "red"), ("light blue", "brown"), ("light green", "purple"), ("yellow", "blue"),
    ("blue", "orange"), ("pink", "green"), ("green", "pink"), ("purple", "yellow"),
})  # fmt: skip
FACTORS = {"bigger": 1.5, "smaller": 1 / 1.5, "double": 2.0, "half": 0.5}
NEW_RADII = {"small": 0.055, "medium": 0.078, "big": 0.111}
SMALLEST_RADIUS = 0.038
ALIKE = 75  # two tones nearer than this are not a visible change; red and orange are further apart
ROUND = ("circle", "ring")
CLEAR = 110  # the least distance of a new colour to the background, and of a new background to what lies on it
EXTREMES = {"left": ("x", 1), "right": ("x", -1), "up": ("y", 1), "down": ("y", -1)}


@dataclass(frozen=True)
class Step:
    """One edit.

    Attributes:
        page: the page after it.
        clause: the order in words.
        words: the same in the world's short form, place first: `r1c2 red star becomes blue star`.
        pairs: what it is about, before and after, as the splits withhold it: (colour, shape), for a background
            (ground, colour of a thing), for text (`digits`, two neighbours) or (`word`, word).
    """

    page: Page | TextPage
    clause: str
    words: str
    pairs: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Desk:
    """What a step is made from.

    Attributes:
        rng: draws what happens; `voice` draws how it is said, so that languages share their pictures.
        start: the page before the first step: things are named as they are there.
        named: what was meant, in the order it was said: a name, and the indices of its things.
    """

    rng: random.Random
    voice: random.Random
    language: str
    rare: bool  # whether withheld compositions are wanted, not avoided
    start: Page
    named: list[tuple[Reference, tuple[int, ...]]] = field(default_factory=list)

    def say(self, kind: str, **slots: str) -> str:
        return phrases.clause(kind, self.language, self.voice, **slots)

    def colour(self, colour: str) -> str:
        return phrases.colour_name(colour, self.language, self.voice)

    def pick(self, page: Page, fitting: Callable[[Item], bool] = lambda item: True) -> tuple[int, Reference]:
        """A thing no step has touched, and what it can be called."""
        untouched = [i for i in page.present if i < len(self.start.items) and page.items[i] == self.start.items[i]
                     and fitting(page.items[i])]  # fmt: skip
        withheld = [i for i in untouched if _pair(page.items[i].thing) in HELD_OUT_PAIRS]
        if not untouched:
            raise NotAskable
        index = self.rng.choice(withheld if self.rare and withheld else untouched)
        reference = self.reference(page, index)
        self.named.append((reference, (index,)))
        return index, reference

    def call(self, reference: Reference) -> str:
        return phrases.thing_name(reference, self.language, self.voice)

    def reference(self, page: Page, index: int) -> Reference:
        """What the thing can be called that nothing else on the page, or on the first one, could be."""
        thing = page.items[index].thing
        full = Reference(thing.colour, thing.shape)
        forms = [full]
        if self.rng.random() < 0.25:
            forms.insert(0, self.rng.choice((Reference(shape=thing.shape), Reference(colour=thing.colour))))
        if thing.size != "medium":
            forms.append(replace(full, size=thing.size))
        forms.append(replace(full, cell=(thing.row, thing.column)))
        for form in forms:
            if all([i for i in p.present if form.fits(p.items[i].thing)] == [index] for p in (self.start, page)):
                return form
        raise NotAskable

    def allowed(self, colour: str, shape: str) -> bool:
        return self.rare or (colour, shape) not in HELD_OUT_PAIRS

    def new_pair(self, fitting: Callable[[str, str], bool] = lambda colour, shape: True) -> tuple[str, str]:
        """A colour and a shape for something new; half of the time a withheld pair, where those are wanted."""
        pairs = [(c, s) for c in COLOURS for s in SHAPES if fitting(c, s) and self.allowed(c, s)]
        withheld = [p for p in pairs if p in HELD_OUT_PAIRS]
        pairs = withheld if self.rare and withheld and self.rng.random() < 0.5 else pairs
        if not pairs:
            raise NotAskable
        return self.rng.choice(pairs)


def _pair(thing: Thing) -> tuple[str, str]:
    return thing.colour, thing.shape


def _visible(tone, page: Page) -> bool:
    return math.dist(tone, page.ground) >= CLEAR


def _becomes(page: Page, index: int, item: Item, clause: str, words: str) -> Step:
    old = page.items[index].thing
    return Step(page.with_item(index, item), clause, f"{old.place} {old.full_name} {words}",
                frozenset({_pair(old), _pair(item.thing)}))  # fmt: skip


def recolour(desk: Desk, page: Page) -> Step:
    index, named = desk.pick(page)
    item = page.items[index]
    shape = item.thing.shape
    colours = [c for c in COLOURS if c != item.thing.colour and desk.allowed(c, shape)
               and math.dist(TONES[c][0], item.tone) >= ALIKE and _visible(TONES[c][0], page)]  # fmt: skip
    if not colours:
        raise NotAskable
    withheld = [c for c in colours if (c, shape) in HELD_OUT_PAIRS]
    colour = desk.rng.choice(withheld if desk.rare and withheld else colours)
    if item.style == "bordered" and colour == "black":
        raise NotAskable
    new = Item(replace(item.thing, colour=colour), TONES[colour][0], item.style)
    return _becomes(
        page, index, new, desk.say("recolour", a=desk.call(named), colour=desk.colour(colour)), f"becomes {colour}"
    )


def resize(desk: Desk, page: Page) -> Step:
    kind = desk.rng.choices(tuple(FACTORS), (0.35, 0.35, 0.15, 0.15))[0]
    index, named = desk.pick(page)
    item = page.items[index]
    radius = item.thing.radius * FACTORS[kind]
    thing = replace(item.thing, radius=radius, size=_size_class(radius))
    if radius < SMALLEST_RADIUS:
        raise NotAskable
    _check_room(page, thing, index)
    words = {"bigger": "grows", "smaller": "shrinks", "double": "doubles", "half": "halves"}[kind]
    return _becomes(page, index, replace(item, thing=thing), desk.say(kind, a=desk.call(named)), words)


def _size_class(radius: float) -> str:
    return "small" if radius < 0.0625 else "medium" if radius < 0.094 else "big"


def _check_room(page: Page, thing: Thing, *but: int) -> None:
    """Raises `NotAskable` unless the thing lies on the page and clear of all others (`but` excepted)."""
    reach = 0.85 * thing.radius
    if not all(reach <= v <= 1 - reach for v in (thing.x, thing.y)):
        raise NotAskable
    for i in page.present:
        other = page.items[i].thing
        if i not in but and math.hypot(thing.x - other.x, thing.y - other.y) < thing.radius + other.radius:
            raise NotAskable


def _centre(cell: tuple[int, int]) -> dict[str, float]:
    return {"x": (cell[1] - 0.5) * CELL, "y": (cell[0] - 0.5) * CELL}


def _beside(desk: Desk, page: Page, but: int | None) -> tuple[dict[str, float], str]:
    """The place one cell beside another thing, and its name."""
    anchor, named = desk.pick(page, lambda item: but is None or item is not page.items[but])
    direction, (down, across) = desk.rng.choice(list(DIRECTIONS.items()))
    thing = page.items[anchor].thing
    spot = {"x": thing.x + across * CELL, "y": thing.y + down * CELL}
    return spot, phrases.beside(direction, desk.call(named), desk.language, desk.voice)


def move(desk: Desk, page: Page) -> Step:
    index, named = desk.pick(page)
    item = page.items[index]
    way = desk.rng.choices(("cell", "step", "beside"), (0.5, 0.25, 0.25))[0]
    if way == "step":
        direction, (down, across) = desk.rng.choice(list(DIRECTIONS.items()))
        count = desk.rng.choice((1, 1, 2))
        spot = {"x": item.thing.x + across * count * CELL, "y": item.thing.y + down * count * CELL}
        said = desk.say(
            "step", a=desk.call(named), steps=phrases.steps_name(direction, count, desk.language, desk.voice)
        )
    elif way == "cell":
        cell = _free_cell(desk, page)
        spot = _centre(cell)
        # "Place the star in row 1 in row 3" would be read twice.
        puts = named.cell is None and desk.voice.random() < 0.3
        where = phrases.where(cell, desk.language, desk.voice, to=not puts)
        said = desk.say("put" if puts else "move", a=desk.call(named), where=where)
    else:
        spot, beside = _beside(desk, page, index)
        said = desk.say("move", a=desk.call(named), where=beside)
    thing = replace(item.thing, **spot)
    if math.hypot(thing.x - item.thing.x, thing.y - item.thing.y) < max(0.15, thing.radius):
        raise NotAskable
    _check_room(page, thing, index)
    return _becomes(page, index, replace(item, thing=thing), said, f"moves to {thing.place}")


def _free_cell(desk: Desk, page: Page) -> tuple[int, int]:
    taken = {(page.items[i].thing.row, page.items[i].thing.column) for i in page.present}
    free = [cell for cell in CELLS if cell not in taken]
    corners = [cell for cell in free if cell in phrases.CORNERS]
    if not free:
        raise NotAskable
    return desk.rng.choice(corners if corners and desk.rng.random() < 0.35 else free)


def add(desk: Desk, page: Page) -> Step:
    colour, shape = desk.new_pair(lambda c, s: _visible(TONES[c][0], page))
    size = desk.rng.choices(("small", "medium", "big"), (0.2, 0.55, 0.25))[0]
    if page.present and desk.rng.random() < 0.35:
        spot, where = _beside(desk, page, None)
    else:
        cell = _free_cell(desk, page)
        spot, where = _centre(cell), phrases.where(cell, desk.language, desk.voice)
    thing = Thing(shape, colour, size, radius=NEW_RADII[size], rotation=0.0, **spot)
    _check_room(page, thing)
    said = desk.say("add", new=phrases.new_name(colour, shape, size, desk.language, desk.voice), where=where)
    return Step(page.with_item(len(page.items), Item(thing, TONES[colour][0])), said,
                f"{thing.place} {thing.full_name} appears", frozenset({(colour, shape)}))  # fmt: skip


def remove(desk: Desk, page: Page) -> Step:
    index, named = desk.pick(page)
    thing = page.items[index].thing
    return Step(page.with_item(index, None), desk.say("remove", a=desk.call(named)),
                f"{thing.place} {thing.full_name} goes", frozenset({_pair(thing)}))  # fmt: skip


def substitute(desk: Desk, page: Page) -> Step:
    """The family `replace`: another shape in the same place, in a new colour or, if none is said, the old one."""
    index, named = desk.pick(page)
    item = page.items[index]
    keeps_colour = desk.rng.random() < 0.4
    colour, shape = desk.new_pair(
        lambda c, s: (
            s != item.thing.shape
            and (c == item.thing.colour) == keeps_colour
            and (keeps_colour or _visible(TONES[c][0], page))
        )
    )
    # How a circle was turned cannot be seen; what takes its place stands upright.
    turned = 0.0 if item.thing.shape in ROUND else item.thing.rotation
    thing = replace(item.thing, colour=colour, shape=shape, rotation=turned)
    new = Item(thing, item.tone if keeps_colour else TONES[colour][0])
    new_name = phrases.new_name(None if keeps_colour else colour, shape, "medium", desk.language, desk.voice)
    return _becomes(
        page, index, new, desk.say("replace", a=desk.call(named), new=new_name), f"becomes {colour} {shape}"
    )


def swap(desk: Desk, page: Page) -> Step:
    a, named_a = desk.pick(page)
    first = page.items[a]
    b, named_b = desk.pick(page, lambda item: _pair(item.thing) != _pair(first.thing))
    second = page.items[b]
    old = frozenset({_pair(first.thing), _pair(second.thing)})
    words = f"{first.thing.place} {first.thing.full_name} and {second.thing.place} {second.thing.full_name} swap"
    if first.thing.colour != second.thing.colour and desk.rng.random() < 0.25:
        new_a = Item(replace(first.thing, colour=second.thing.colour), second.tone, first.style)
        new_b = Item(replace(second.thing, colour=first.thing.colour), first.tone, second.style)
        new = frozenset({_pair(new_a.thing), _pair(new_b.thing)})
        if math.dist(first.tone, second.tone) < ALIKE or not all(desk.allowed(*pair) for pair in new):
            raise NotAskable
        kind, words = "swap_colours", words + " colours"
    else:
        new_a, new_b = (
            replace(item, thing=replace(item.thing, x=other.thing.x, y=other.thing.y))
            for item, other in ((first, second), (second, first))
        )
        _check_room(page, new_a.thing, a, b)
        _check_room(page, new_b.thing, a, b)
        if math.dist((first.thing.x, first.thing.y), (second.thing.x, second.thing.y)) < (
            first.thing.radius + second.thing.radius
        ):
            raise NotAskable
        kind, words, new = "swap", words + " places", old
    return Step(
        page.with_item(a, new_a).with_item(b, new_b),
        desk.say(kind, a=desk.call(named_a), b=desk.call(named_b)),
        words,
        old | new,
    )


def background(desk: Desk, page: Page) -> Step:
    colours = sorted({page.items[i].thing.colour for i in page.present})
    names = [
        n
        for n, g in GROUNDS.items()
        if math.dist(g, page.ground) >= ALIKE and all(math.dist(g, t) >= CLEAR for t in page.tones)
    ]
    withheld = [n for n in names if any((n, c) in HELD_OUT_GROUNDS for c in colours)]
    names = (withheld or names) if desk.rare else [n for n in names if n not in withheld]
    if not names:
        raise NotAskable
    name = desk.rng.choice(names)
    return Step(replace(page, ground=GROUNDS[name]), desk.say("background", colour=desk.colour(name)),
                f"background becomes {name}", frozenset((name, c) for c in colours))  # fmt: skip


def can_be_styled(item: Item) -> bool:
    """Whether stripes and dots would be seen on it: narrow shapes need more room for them."""
    narrow = item.thing.shape in ("star", "cross", "moon")
    return item.thing.shape != "ring" and item.thing.radius >= (0.1 if narrow else 0.075)


def restyle(desk: Desk, page: Page) -> Step:
    index, named = desk.pick(page, can_be_styled)
    item = page.items[index]
    styles = [s for s in STYLES if s != item.style and (s != "bordered" or math.dist(item.tone, BORDER) > 120)]
    style = desk.rng.choice(styles if item.style == "plain" or desk.rng.random() < 0.5 else ["plain"])
    return _becomes(page, index, replace(item, style=style), desk.say(style, a=desk.call(named)), f"becomes {style}")


def count(desk: Desk, page: Page) -> Step:
    """Groups: leave only the stars, remove all red things, remove all stars but the two leftmost ones."""
    index, _ = desk.pick(page)
    focus = page.items[index].thing
    colour, shape = (focus.colour, None) if desk.rng.random() < 0.35 else (None, focus.shape)
    members = [i for i in page.present if Reference(colour, shape).fits(page.items[i].thing)]
    desk.named[-1] = (Reference(colour, shape), tuple(members))
    others = [i for i in page.present if i not in members]
    way = desk.rng.choice(("keep", "clear", "thin"))
    about = {_pair(page.items[i].thing) for i in members}
    if way == "keep":
        if not others or len(members) > 5:
            raise NotAskable
        gone = others
        group = phrases.counted_group(len(members), colour, shape, desk.language, desk.voice)
        said = desk.say("keep", group=group)
    elif way == "clear":
        if len(members) < 2:
            raise NotAskable
        gone = members
        said = desk.say("clear", group=phrases.group_name(colour, shape, desk.language, desk.voice))
    else:
        gone, direction, left = _all_but_extreme(desk, page, members)
        group = phrases.group_name(colour, shape, desk.language, desk.voice)
        said = desk.say("thin", group=group, rest=phrases.extreme_name(direction, left, desk.language))
    after = page
    for i in gone:
        after = after.with_item(i, None)
    things = [page.items[i].thing for i in gone]
    words = ", ".join(f"{t.place} {t.full_name}" for t in things) + (" go" if len(things) > 1 else " goes")
    return Step(after, said, words, frozenset(about | {_pair(t) for t in things}))


def _all_but_extreme(desk: Desk, page: Page, members: list[int]) -> tuple[list[int], str, int]:
    """Who goes, the side whose things stay, and how many do; only where the eye would choose alike."""
    if len(members) < 2:
        raise NotAskable
    left = desk.rng.randint(1, min(3, len(members) - 1))
    direction, (axis, sign) = desk.rng.choice(list(EXTREMES.items()))
    ranked = sorted(members, key=lambda i: sign * getattr(page.items[i].thing, axis))
    edge, next_one = (getattr(page.items[i].thing, axis) for i in ranked[left - 1 : left + 1])
    if abs(edge - next_one) < 0.08:
        raise NotAskable
    return sorted(ranked[left:]), direction, left


STEPS: dict[str, Callable[[Desk, Page], Step]] = {
    "recolour": recolour, "resize": resize, "move": move, "add": add, "remove": remove, "replace": substitute,
    "swap": swap, "background": background, "restyle": restyle, "count": count,
}  # fmt: skip
