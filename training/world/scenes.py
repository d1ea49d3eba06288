"""Scenes of coloured shapes: what is where, before anything is drawn or asked.

Positions and radii are fractions of the picture's side, so a scene is independent of its resolution.
"""

import math
import random
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray")
# One shape is withheld from every colour; no training picture shows these ten pairs.
HELD_OUT_PAIRS = frozenset((colour, SHAPES[(i * 2 + 3) % len(SHAPES)]) for i, colour in enumerate(COLOURS))
TRAINING_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS)

GRID = 4
CELL = 1 / GRID
CELLS = tuple((row, column) for row in range(1, GRID + 1) for column in range(1, GRID + 1))
# Radius by size class; the gaps between the classes keep the words decidable.
RADII = {"small": (0.042, 0.055), "medium": (0.07, 0.086), "big": (0.102, 0.12)}
# How many objects a scene holds, by split: the hard one goes on where the others stop.
COUNTS = {"easy": (1, 8), "train": (1, 8), "test": (1, 8), "held_out": (2, 8), "hard": (8, 13)}
# Centres keep this distance from the lines between cells: a thing on the line is in no row or column.
LINE_MARGIN = 0.025


def place(row: int, column: int) -> str:
    return f"r{row}c{column}"


def grid_lines(entries: list[str]) -> str:
    """Sixteen entries, four a line."""
    return "\n".join(" ".join(entries[i : i + GRID]) for i in range(0, len(entries), GRID))


@dataclass(frozen=True)
class Thing:
    """One shape: centre (x right, y down), radius of its circumcircle, rotation in degrees."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        """With its size class; medium is not said."""
        return self.name if self.size == "medium" else f"{self.size} {self.name}"

    @property
    def place(self) -> str:
        """`r2c3` for the second row, third column."""
        return place(self.row, self.column)

    @property
    def row(self) -> int:
        """1 (top) to 4."""
        return min(GRID, int(self.y * GRID) + 1)

    @property
    def column(self) -> int:
        """1 (left) to 4."""
        return min(GRID, int(self.x * GRID) + 1)


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order: by row, then by column, then from the left."""

    things: tuple[Thing, ...]

    def transcription(self, said: tuple[str, ...] = ()) -> str:
        """The whole grid in words, a row a line: every cell's place (one token), then what is in it.

        `-` is an empty cell, `+` joins things that share one. The place comes first, and the empty cells too, so that
        writing the next word is looking at one place and finding a thing again is finding its place.

        Args:
            said: how each thing is said, in their order; by default by its full name.
        """
        return grid_lines(self.entries(said))

    def entries(self, said: tuple[str, ...] = ()) -> list[str]:
        """The transcription's parts, each of which can be read by itself."""
        cells: dict[tuple[int, int], list[str]] = {}
        for thing, words in zip(self.things, said or [t.full_name for t in self.things], strict=True):
            cells.setdefault((thing.row, thing.column), []).append(words)
        return [f"{place(*cell)} {' + '.join(cells.get(cell, ['-']))}" for cell in CELLS]

    def with_thing(self, index: int, **changes) -> "Scene":
        """A copy in which one thing is changed: the ground of edits."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return Scene(reading_order(things))


def reading_order(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda t: (t.row, t.column, t.x)))


def draw_scene(rng: random.Random, split: str, things: int | None = None) -> Scene:
    """A random scene of the split's kind; raises ValueError when `split` is unknown.

    Args:
        things: how many it has, as far as there is room for them; by default as many as the split's scenes.
    """
    if split not in COUNTS:
        raise ValueError(f"no split named {split!r}; there are {', '.join(COUNTS)}.")
    low, high = COUNTS[split]
    layout = "grid" if split == "easy" else rng.choices(("grid", "scatter", "sparse"), (0.6, 0.25, 0.15))[0]
    count = things or rng.randint(low, high)
    if layout == "sparse" and split != "hard" and not things:
        count = min(count, 5)
    placed: list[Thing] = []
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    rng.shuffle(cells)
    # A few kinds a scene, so that counting and comparing have something to do.
    kinds = [_draw_pair(rng, split) for _ in range(rng.randint(2, 6))]
    for index in range(count):
        pair = rng.choice(kinds) if rng.random() < 0.55 else _draw_pair(rng, split)
        if split == "held_out" and index == 0:
            pair = rng.choice(sorted(HELD_OUT_PAIRS))
        size = rng.choices(("small", "medium", "big"), (0.5, 0.35, 0.15) if split == "hard" else (0.25, 0.45, 0.3))[0]
        cell = cells[index] if layout == "grid" else None
        thing = _place(rng, pair, size, cell, placed, grown=layout == "sparse")
        if thing is not None:
            placed.append(thing)
    return Scene(reading_order(placed))


def _draw_pair(rng: random.Random, split: str) -> tuple[str, str]:
    if split == "held_out" and rng.random() < 0.3:
        return rng.choice(sorted(HELD_OUT_PAIRS))
    return rng.choice(TRAINING_PAIRS)


def _place(rng, pair, size, cell, things, *, grown) -> Thing | None:
    """Tries to find room; in a cell (jittered) or anywhere, never overlapping what is there."""
    colour, shape = pair
    for _ in range(30):
        radius = rng.uniform(*RADII[size])
        if grown and size == "big":
            radius *= rng.uniform(1.0, 2.2)
        if cell is not None:
            # The jitter may carry a shape's edge over the line, never its centre.
            reach = max(0.0, CELL / 2 - max(LINE_MARGIN, radius * 0.8))
            x = (cell[1] + 0.5) * CELL + rng.uniform(-reach, reach)
            y = (cell[0] + 0.5) * CELL + rng.uniform(-reach, reach)
        else:
            x, y = rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)
            if any(abs(v / CELL - round(v / CELL)) * CELL < LINE_MARGIN for v in (x, y)):
                continue
        if any(math.hypot(x - t.x, y - t.y) < (radius + t.radius) * 0.95 for t in things):
            continue
        rotation = rng.uniform(-18, 18)
        return Thing(shape, colour, size, x, y, radius, rotation)
    return None
