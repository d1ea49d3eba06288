"""Questions about scenes of shapes. Each family is a function of (scene, generator) and gives a `Question`.

What is looked for is said first, each with its mark (`? red star A, blue moon B`), and then the transcription repeats
the mark behind the thing: one glance back at the same words, which a small model can learn. To search a finished list
for what matches is not so easy: with plain transcriptions and lists drawn from them afterwards, mini transcribed most
scenes without a mistake and then took the wrong thing from every second one; marks without a legend did no better.
The steps begin with the place of what was found. The evidence in the conclusion repeats the items, so that two
conclusions can be compared part by part.
"""

import math
import random

from training.world.rendering import box
from training.world.sample import NotAskable, Question
from training.world.scenes import COLOURS, GRID, HELD_OUT_PAIRS, SHAPES, TRAINING_PAIRS, Scene, Thing

FOUND = "!"
ORDINALS = ("first", "second", "third", "fourth")


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _focus(things: list[Thing], rng: random.Random) -> Thing:
    """One of the things; a withheld composition first, so that the held-out split asks about what is new in it."""
    if not things:
        raise NotAskable
    rare = [t for t in things if (t.colour, t.shape) in HELD_OUT_PAIRS]
    return rng.choice(rare or things)


def _once(scene: Scene, key) -> list[Thing]:
    """Things that `key` names without ambiguity."""
    seen = [key(t) for t in scene.things]
    return [t for t in scene.things if seen.count(key(t)) == 1]


def _listed(items: list[str]) -> str:
    return ", ".join(items) if items else "none"


def _legend(*wanted: str) -> str:
    """With a space before every word, as within the transcription: a word at a line's start is another token."""
    return "? " + ", ".join(wanted)


def _say(thing: Thing, mark: str, behind: str = "shape") -> str:
    """The thing's full name with a mark behind its `size`, `colour` or `shape`, whichever is looked for."""
    words = {"size": thing.size if behind == "size" or thing.size != "medium" else "", "colour": thing.colour,
             "shape": thing.shape}  # fmt: skip
    words[behind] += mark
    return " ".join(word for word in words.values() if word)


def _marked(scene: Scene, marks: dict[int, str], behind: str = "shape") -> tuple[str, ...]:
    """How each thing is said; `marks` are by the thing's place in the scene."""
    return tuple(_say(t, marks[i], behind) if i in marks else t.full_name for i, t in enumerate(scene.things))


def _found(scene: Scene, *found: Thing, behind: str = "shape") -> tuple[str, ...]:
    """With `!` behind these things."""
    return _marked(scene, {i: FOUND for i, t in enumerate(scene.things) if any(t is f for f in found)}, behind)


def _lettered(scene: Scene, *found: Thing) -> tuple[str, ...]:
    """With ` A` behind the first of these things, ` B` behind the second."""
    letters = {id(thing): f" {letter}" for letter, thing in zip("AB", found, strict=False)}
    return _marked(scene, {i: letters[id(t)] for i, t in enumerate(scene.things) if id(t) in letters})


def _numbered(scene: Scene, members: list[Thing], mark: str) -> dict[int, str]:
    """Marks ` 1`, ` 2` ... of the members: the last one is their count."""
    indices = [i for i, t in enumerate(scene.things) if any(t is m for m in members)]
    return {i: f"{mark} {number}" for number, i in enumerate(indices, 1)}


def _best_so_far(scene: Scene, value) -> tuple[str, ...]:
    """With `!` behind each thing of a higher value than all before it: the last one has the highest."""
    best, marks = -math.inf, {}
    for i, thing in enumerate(scene.things):
        if value(thing) > best:
            best, marks[i] = value(thing), FOUND
    return _marked(scene, marks)


def _at(thing: Thing) -> str:
    return f"{thing.place} {thing.name}"


def _at_full(thing: Thing) -> str:
    return f"{thing.place} {thing.full_name}"


def caption(scene: Scene, rng: random.Random) -> Question:
    if not scene.things:
        raise NotAskable
    prompt = rng.choice(("Describe the picture.", "What is in the picture?", "List all objects.", "What do you see?"))
    names = [t.full_name for t in scene.things]
    count = len(names)
    evidence = f"{count} object{'s' if count > 1 else ''}"
    verifier = {"kind": "objects", "truth": names}
    return Question(prompt, "", evidence, ", ".join(names), verifier,
                    said=_marked(scene, _numbered(scene, list(scene.things), "")))  # fmt: skip


def attribute(scene: Scene, rng: random.Random) -> Question:
    kind = rng.choice(("colour", "shape", "size", "cell"))
    if kind == "colour":
        thing = _focus(_once(scene, lambda t: t.shape), rng)
        prompt = rng.choice(("What colour is the {0}?", "What color is the {0}?", "Which colour does the {0} have?",
                             "Name the colour of the {0}."))  # fmt: skip
        return Question(prompt.format(thing.shape), _at_full(thing), f"The {thing.shape} is {thing.colour}",
                        thing.colour, {"kind": "exact", "truth": _spellings(thing.colour)},
                        _legend(thing.shape + FOUND), _found(scene, thing))  # fmt: skip
    if kind == "shape":
        thing = _focus(_once(scene, lambda t: t.colour), rng)
        prompt = rng.choice(
            ("What shape is the {0} object?", "Which shape is {0}?", "The {0} thing: what shape is it?")
        )
        return Question(prompt.format(thing.colour), _at_full(thing), f"The {thing.colour} object is a {thing.shape}",
                        thing.shape, {"kind": "exact", "truth": [thing.shape]},
                        _legend(thing.colour + FOUND), _found(scene, thing, behind="colour"))  # fmt: skip
    if kind == "size":
        thing = _focus(_once(scene, lambda t: t.name), rng)
        prompt = rng.choice(
            ("How big is the {0}: small, medium or big?", "What size is the {0}: small, medium or big?")
        )
        return Question(prompt.format(thing.name), _at_full(thing), f"The {thing.name} is {thing.size}",
                        thing.size, {"kind": "exact", "truth": [thing.size]},
                        _legend(thing.name + FOUND), _found(scene, thing))  # fmt: skip
    row, column = rng.randint(1, GRID), rng.randint(1, GRID)
    if rng.random() < 0.8:
        chosen = _focus(list(scene.things), rng)
        row, column = chosen.row, chosen.column
    inside = [t.full_name for t in scene.things if (t.row, t.column) == (row, column)]
    if len(inside) > 1:
        raise NotAskable
    found = inside[0] if inside else "nothing"
    prompt = rng.choice((f"What is in row {row}, column {column}?",
                         f"Which object is in the {ORDINALS[row - 1]} row, {ORDINALS[column - 1]} column?",
                         f"Row {row} column {column}: what is there?"))  # fmt: skip
    steps = f"r{row}c{column} {found}"
    accepted = ["nothing", "none", "empty"] if not inside else [found, found.split(" ", 1)[1] if found.startswith(
        ("small ", "big ")) else f"medium {found}"]  # fmt: skip
    return Question(prompt, steps, f"Row {row} column {column} has {found}", found,
                    {"kind": "exact", "truth": accepted})  # fmt: skip


def _spellings(colour: str) -> list[str]:
    return ["gray", "grey"] if colour == "gray" else [colour]


def existence(scene: Scene, rng: random.Random) -> Question:
    present = rng.random() < 0.5
    if present:
        thing = _focus(list(scene.things), rng)
        colour, shape = thing.colour, thing.shape
    else:
        # A near miss: the colour or the shape alone is usually there.
        base = _focus(list(scene.things), rng)
        colour, shape = (base.colour, rng.choice(SHAPES)) if rng.random() < 0.5 else (rng.choice(COLOURS), base.shape)
        if any((t.colour, t.shape) == (colour, shape) for t in scene.things):
            raise NotAskable
    prompt = rng.choice(("Is there a {0}?", "Do you see a {0}?", "Does the picture show a {0}?", "Can you find a {0}?"))
    same = [t for t in scene.things if (t.colour, t.shape) == (colour, shape)]
    answer = "yes" if present else "no"
    steps = f"{colour} {shape}: {_listed([t.place for t in same])}"
    evidence = f"There is {'a' if present else 'no'} {colour} {shape}"
    verifier = {"kind": "exact", "truth": [answer]}
    return Question(prompt.format(f"{colour} {shape}"), steps, evidence, answer, verifier,
                    _legend(f"{colour} {shape}{FOUND}"), _found(scene, *same))  # fmt: skip


def _selector(scene: Scene, rng: random.Random) -> tuple[str, str, str, list[Thing]]:
    """A group in words, the word that tells its members, which of their words that is, and the members."""
    kind = rng.choice(("shape", "shape", "colour", "size", "all"))
    thing = _focus(list(scene.things), rng)
    if kind == "shape":
        shape = thing.shape if rng.random() < 0.85 else rng.choice(SHAPES)
        return plural(shape), shape, kind, [t for t in scene.things if t.shape == shape]
    if kind == "colour":
        colour = thing.colour if rng.random() < 0.85 else rng.choice(COLOURS)
        return f"{colour} objects", colour, kind, [t for t in scene.things if t.colour == colour]
    if kind == "size":
        return f"{thing.size} objects", thing.size, kind, [t for t in scene.things if t.size == thing.size]
    return "objects", "all", "shape", list(scene.things)


def count(scene: Scene, rng: random.Random) -> Question:
    words, told_by, which, members = _selector(scene, rng)
    prompt = rng.choice(("How many {0} are there?", "Count the {0}.", "How many {0} do you see?",
                         "What is the number of {0}?"))  # fmt: skip
    n = len(members)
    return Question(prompt.format(words), f"{n} {words}", _listed([t.name for t in members]), str(n),
                    {"kind": "numeric", "truth": n}, _legend(told_by + FOUND),
                    _marked(scene, _numbered(scene, members, FOUND), which))  # fmt: skip


def compare(scene: Scene, rng: random.Random) -> Question:
    by_colour = rng.random() < 0.5
    values = sorted({t.colour if by_colour else t.shape for t in scene.things})
    pool = COLOURS if by_colour else SHAPES
    first = rng.choice(values)
    second = rng.choice([v for v in (values if len(values) > 1 and rng.random() < 0.8 else pool) if v != first])
    if rng.random() < 0.5:
        first, second = second, first

    def members(value):
        return [t for t in scene.things if (t.colour if by_colour else t.shape) == value]

    def words(value):
        return f"{value} objects" if by_colour else plural(value)

    a, b = members(first), members(second)
    legend = _legend(f"{first} A", f"{second} B")
    said = _marked(scene, _numbered(scene, a, " A") | _numbered(scene, b, " B"), "colour" if by_colour else "shape")
    steps = f"A {len(a)}, B {len(b)}: {'equal' if len(a) == len(b) else 'more' if len(a) > len(b) else 'fewer'}"
    evidence = f"{words(first)}: {len(a)}, {words(second)}: {len(b)}"
    form = rng.choice(("more", "fewer", "which"))
    if form == "which":
        if len(a) == len(b):
            raise NotAskable
        prompt = f"Which are there more of: {words(first)} or {words(second)}?"
        winner = first if len(a) > len(b) else second
        answer = words(winner)
        return Question(prompt, steps, evidence, answer, {"kind": "exact", "truth": [answer, winner]}, legend, said)
    prompt = f"Are there {form} {words(first)} than {words(second)}?"
    yes = len(a) > len(b) if form == "more" else len(a) < len(b)
    answer = "yes" if yes else "no"
    return Question(prompt, steps, evidence, answer, {"kind": "exact", "truth": [answer]}, legend, said)


def relation(scene: Scene, rng: random.Random) -> Question:
    unique = _once(scene, lambda t: t.name)
    a = _focus(unique, rng)
    if rng.random() < 0.3:
        dy, dx, words = rng.choice(((0, 1, "directly right of"), (0, -1, "directly left of"), (1, 0, "directly below"),
                                    (-1, 0, "directly above")))  # fmt: skip
        row, column = a.row + dy, a.column + dx
        if not (1 <= row <= GRID and 1 <= column <= GRID):
            raise NotAskable
        inside = [t for t in scene.things if (t.row, t.column) == (row, column)]
        if len(inside) > 1 or sum((t.row, t.column) == (a.row, a.column) for t in scene.things) > 1:
            raise NotAskable
        if not inside and rng.random() < 0.6:
            raise NotAskable  # or "nothing" would be the answer most of the time
        found = inside[0].name if inside else "nothing"
        prompt = f"What is {words} the {a.name}?"
        steps = f"A {a.place}\nr{row}c{column} {found}"
        return Question(prompt, steps, f"The {a.name} is in row {a.row} column {a.column}", found,
                        {"kind": "exact", "truth": [found] if inside else ["nothing", "none"]},
                        _legend(f"{a.name} A"), _lettered(scene, a))  # fmt: skip
    others = [t for t in unique if t is not a]
    if not others:
        raise NotAskable
    b = rng.choice(others)
    words, axis, sign = rng.choice((("left of", "column", -1), ("right of", "column", 1), ("above", "row", -1),
                                    ("below", "row", 1)))  # fmt: skip
    va, vb = getattr(a, axis), getattr(b, axis)
    if va == vb:
        raise NotAskable
    yes = (va - vb) * sign > 0
    prompt = rng.choice((f"Is the {a.name} {words} the {b.name}?", f"Does the {a.name} lie {words} the {b.name}?"))
    # Where a is, seen from b, and beside it where it was asked to be: mini forgot the question's word at this length.
    seen = {"column": ("left", "right"), "row": ("above", "below")}[axis][va > vb]
    answer = "yes" if yes else "no"
    steps = f"A {a.place}, B {b.place}\n{axis}: {va} and {vb}, {seen}, {words.split()[0]}? {answer}"
    evidence = f"The {a.name} is in {axis} {va}, the {b.name} in {axis} {vb}"
    return Question(prompt, steps, evidence, answer, {"kind": "exact", "truth": [answer]},
                    _legend(f"{a.name} A", f"{b.name} B"), _lettered(scene, a, b))  # fmt: skip


def extreme(scene: Scene, rng: random.Random) -> Question:
    if len(scene.things) < 2:
        raise NotAskable
    kind = rng.choice(("size", "side", "nearest"))
    if kind == "size":
        order = ("big", "medium", "small") if rng.random() < 0.6 else ("small", "medium", "big")
        word = {"big": ("largest", "biggest"), "small": ("smallest", "tiniest")}[order[0]]
        size = next(s for s in order if any(t.size == s for t in scene.things))
        members = [t for t in scene.things if t.size == size]
        if len(members) != 1:
            raise NotAskable
        found = members[0]
        prompt = f"Which object is the {rng.choice(word)}?"
        return Question(prompt, f"{size}: {_at(found)}", f"One {size} object", found.name,
                        {"kind": "exact", "truth": [found.name, found.full_name]},
                        said=_best_so_far(scene, lambda t: -order.index(t.size)))  # fmt: skip
    if kind == "side":
        sides = (
            ("leftmost", "column", min),
            ("rightmost", "column", max),
            ("topmost", "row", min),
            ("lowest", "row", max),
        )
        word, axis, best = rng.choice(sides)
        value = best(getattr(t, axis) for t in scene.things)
        members = [t for t in scene.things if getattr(t, axis) == value]
        if len(members) != 1:
            raise NotAskable
        found = members[0]
        return Question(f"Which object is {word}?", f"{axis} {value}: {_at(found)}", f"It is in {axis} {value}",
                        found.name, {"kind": "exact", "truth": [found.name, found.full_name]},
                        said=_best_so_far(scene, lambda t: getattr(t, axis) * (1 if best is max else -1)))  # fmt: skip
    anchor = _focus(_once(scene, lambda t: t.name), rng)
    others = [t for t in scene.things if t is not anchor]
    if len(others) > 4:
        raise NotAskable

    def steps_apart(t: Thing) -> int:
        return abs(t.row - anchor.row) + abs(t.column - anchor.column)

    ranked = sorted(others, key=steps_apart)
    distances = [math.hypot(t.x - anchor.x, t.y - anchor.y) for t in ranked]
    # Only where the count of cells and the eye agree.
    if len(ranked) > 1 and (steps_apart(ranked[0]) == steps_apart(ranked[1]) or min(distances) != distances[0]):
        raise NotAskable
    lines = [f"A {anchor.place}"]
    for t in others:
        down, across = abs(t.row - anchor.row), abs(t.column - anchor.column)
        lines.append(f"{_at(t)} {down} + {across} = {down + across}")
    prompt = rng.choice((f"Which object is nearest to the {anchor.name}?", f"What is closest to the {anchor.name}?"))
    found = ranked[0]
    return Question(prompt, "\n".join(lines), f"It is {steps_apart(found)} from the {anchor.name}", found.name,
                    {"kind": "exact", "truth": [found.name, found.full_name]}, _legend(f"{anchor.name} A"),
                    _lettered(scene, anchor))  # fmt: skip


def grounding(scene: Scene, rng: random.Random) -> Question:
    thing = _focus(_once(scene, lambda t: t.name), rng)
    prompt = rng.choice(("Where is the {0}? Give its box.", "Give the bounding box of the {0}.", "Box of the {0}?",
                         "Locate the {0}: x1, y1, x2, y2 from 0 to 99."))  # fmt: skip
    corners = box(thing)
    answer = "[" + ", ".join(f"{v:02d}" for v in corners) + "]"
    return Question(prompt.format(thing.name), _at(thing),
                    f"The {thing.name} is in row {thing.row} column {thing.column}", answer,
                    {"kind": "box", "truth": list(corners)}, _legend(thing.name + FOUND),
                    _found(scene, thing))  # fmt: skip


def tally(scene: Scene, rng: random.Random) -> Question:
    shapes = sorted({t.shape for t in scene.things})
    if not shapes:
        raise NotAskable
    rng.shuffle(shapes)
    chosen = shapes[: rng.randint(1, 3)]
    values = {shape: rng.randint(1, 9) for shape in chosen}
    each = [f"each {shape} is worth {value}" for shape, value in values.items()]
    sentence = each[0] if len(each) == 1 else ", ".join(each[:-1]) + " and " + each[-1]
    prompt = rng.choice(("{0}. What is the total?", "{0}; all else is worth 0. What do they add up to?",
                         "{0}. Add them up."))  # fmt: skip
    total, marks, items = 0, {}, []
    for i, thing in enumerate(scene.things):
        if thing.shape in values:
            value = values[thing.shape]
            total += value
            marks[i] = f" + {value} = {total}"
            items.append(f"{thing.shape} {value}")
    legend = _legend(*(f"{shape} + {value}" for shape, value in values.items()))
    return Question(prompt.format(sentence[0].upper() + sentence[1:]), f"total {total}", _listed(items), str(total),
                    {"kind": "numeric", "truth": total}, legend, _marked(scene, marks))  # fmt: skip


def match(scene: Scene, rng: random.Random) -> Question:
    """Not a family of its own: the glance back that all of them need, several times in one sample.

    A skill that a sample needs once or twice is learnt so slowly that it seems not to be learnt at all.
    """
    # Names above all: to match two words at once is what is learnt last.
    kind = rng.choice(("shape", "colour", "name", "name", "name"))
    there = list(dict.fromkeys(getattr(t, kind) for t in scene.things))
    others = {"shape": SHAPES, "colour": COLOURS, "name": tuple(" ".join(pair) for pair in TRAINING_PAIRS)}[kind]
    absent = [words for words in others if words not in there]
    if kind == "name":
        # Near misses: half of the name is there.
        seen = {word for t in scene.things for word in (t.colour, t.shape)}
        absent = [name for name in absent if seen & set(name.split())]
    wanted = rng.sample(there, min(len(there), 4)) + rng.sample(absent, min(len(absent), 2 if kind == "name" else 1))
    rng.shuffle(wanted)
    letters = dict(zip(wanted, rng.sample("ABCDEF", len(wanted)), strict=True))
    marks = {i: f" {letters[getattr(t, kind)]}" for i, t in enumerate(scene.things) if getattr(t, kind) in letters}
    answer = scene.transcription(_marked(scene, marks, "colour" if kind == "colour" else "shape"))
    listed = ", ".join(f"{words} {letter}" for words, letter in letters.items())
    prompt = rng.choice(("Transcribe the picture with marks", "Mark what you see")) + f"\n{_legend(listed)}"
    return Question(prompt, "", "", answer, {"kind": "exact", "truth": [answer]})


FAMILIES = {f.__name__: f for f in (caption, attribute, existence, count, compare, relation, extreme, grounding, tally)}
