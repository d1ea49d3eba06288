"""Small mazes: a dot, a goal, walls; which step comes next."""

import random
from collections import deque
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training.world.rendering import SIDE, Nuisance, canvas, finish, tone
from training.world.sample import Question
from training.world.scenes import GRID, grid_lines, place

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
Cell = tuple[int, int]


@dataclass(frozen=True)
class Maze:
    """Open cells (row, column from 0), where the dot is and where it wants to go; everything else is wall."""

    open_cells: frozenset[Cell]
    start: Cell
    goal: Cell

    def transcription(self) -> str:
        """Every cell's place and what it is, a row a line: `#` wall, `.` free, `@` dot, `G` goal."""
        return grid_lines(self.entries())

    def entries(self) -> list[str]:
        """The transcription's parts."""

        def sign(cell: Cell) -> str:
            if cell == self.start:
                return "@"
            if cell == self.goal:
                return "G"
            return "." if cell in self.open_cells else "#"

        return [f"{_name((r, c))} {sign((r, c))}" for r in range(GRID) for c in range(GRID)]

    def path(self) -> list[tuple[str, Cell]]:
        """The shortest way as (move, cell reached), by breadth-first search."""
        came: dict[Cell, tuple[Cell, str]] = {}
        queue = deque([self.start])
        while queue:
            cell = queue.popleft()
            for move, (dr, dc) in MOVES.items():
                step = (cell[0] + dr, cell[1] + dc)
                if step in self.open_cells and step != self.start and step not in came:
                    came[step] = (cell, move)
                    queue.append(step)
        way, cell = [], self.goal
        while cell != self.start:
            previous, move = came[cell]
            way.append((move, cell))
            cell = previous
        return way[::-1]


def held_out(start: Cell, goal: Cell) -> bool:
    """Withheld from training: one pair of start and goal in eight."""
    return (start[0] * 7 + start[1] * 3 + goal[0] * 5 + goal[1]) % 8 == 3


def draw_maze(rng: random.Random, split: str) -> Maze:
    """A winding path, and in the hard split blind alleys and longer ways."""
    shortest, longest = (6, 10) if split == "hard" else (1, 6)
    while True:
        length = rng.randint(shortest, longest)
        way = [(rng.randrange(GRID), rng.randrange(GRID))]
        while len(way) <= length:
            options = [(way[-1][0] + dr, way[-1][1] + dc) for dr, dc in MOVES.values()]
            # Never beside an earlier cell: there is one way only, and it is the shortest.
            options = [o for o in options if _inside(o) and o not in way and sum(_beside(o, w) for w in way) == 1]
            if not options:
                break
            way.append(rng.choice(options))
        if len(way) <= shortest or (split != "hard" and held_out(way[0], way[-1]) != (split == "held_out")):
            continue
        cells = set(way)
        for _ in range(rng.randint(1, 4) if split == "hard" else rng.choice((0, 0, 1, 2))):
            # A blind alley: one more open cell that touches the way at one place.
            stubs = [(r, c) for r in range(GRID) for c in range(GRID)
                     if (r, c) not in cells and sum(_beside((r, c), o) for o in cells) == 1]  # fmt: skip
            if stubs:
                cells.add(rng.choice(stubs))
        return Maze(frozenset(cells), way[0], way[-1])


def _inside(cell: Cell) -> bool:
    return 0 <= cell[0] < GRID and 0 <= cell[1] < GRID


def _beside(a: Cell, b: Cell) -> bool:
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1


def render(maze: Maze, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    wall = tone(rng, rng.choice(("black", "gray", "brown", "blue")))
    dot, goal = tone(rng, "red"), tone(rng, "green")
    image, _ = canvas(rng, nuisance, [wall, dot, goal])
    draw = ImageDraw.Draw(image)
    s = nuisance.supersampling
    side = rng.uniform(0.88, 0.98) * SIDE * s
    ox, oy = (rng.uniform(0, SIDE * s - side) for _ in range(2))
    cell = side / GRID
    lines = rng.random() < 0.5
    for r in range(GRID):
        for c in range(GRID):
            corners = [ox + c * cell, oy + r * cell, ox + (c + 1) * cell, oy + (r + 1) * cell]
            if (r, c) not in maze.open_cells:
                draw.rectangle(corners, fill=wall)
            elif lines:
                draw.rectangle(corners, outline=wall, width=max(1, s // 2))
    for (r, c), colour, is_dot in ((maze.start, dot, True), (maze.goal, goal, False)):
        half = cell * rng.uniform(0.22, 0.33)
        cx, cy = ox + (c + 0.5) * cell, oy + (r + 0.5) * cell
        (draw.ellipse if is_dot else draw.rectangle)([cx - half, cy - half, cx + half, cy + half], fill=colour)
    return finish(rng, image, nuisance)


def _name(cell: Cell) -> str:
    return place(cell[0] + 1, cell[1] + 1)


def maze(scene: Maze, rng: random.Random) -> Question:
    kind = rng.choices(("first", "can", "steps"), (0.5, 0.3, 0.2))[0]
    start = scene.start
    if kind == "can":
        move = rng.choice(list(MOVES))
        cell = (start[0] + MOVES[move][0], start[1] + MOVES[move][1])
        what = "edge" if not _inside(cell) else "free" if cell in scene.open_cells else "wall"
        answer = "yes" if what == "free" else "no"
        words = {"edge": "the edge", "free": "a free cell", "wall": "a wall"}[what]
        name = _name(cell) if what != "edge" else "outside"
        return Question(f"Can the dot move {move}?", f"@ {_name(start)}\n{move}: {name} {what}",
                        f"{move} of the dot is {words}", answer, {"kind": "exact", "truth": [answer]})  # fmt: skip
    way = scene.path()
    walked = [f"@ {_name(start)}", *(f"{i}: {move} {_name(cell)}" for i, (move, cell) in enumerate(way, 1))]
    evidence = "The way is " + ", ".join(move for move, _ in way)
    if kind == "steps":
        prompt = rng.choice(("How many steps is it to the goal?", "How many moves does the dot need to the goal?"))
        return Question(prompt, "\n".join(walked), evidence, str(len(way)), {"kind": "numeric", "truth": len(way)})
    prompt = rng.choice(("Which way should the dot go first to reach the goal?",
                         "What is the first step from the dot to the goal: up, down, left or right?"))  # fmt: skip
    return Question(prompt, "\n".join(walked), evidence, way[0][0], {"kind": "exact", "truth": [way[0][0]]})


FAMILIES = {"maze": maze}
