"""Edits: a picture, an instruction and the picture it asks for; a seed in, an `Edit` out.

The scene before and the scene after are drawn with one nuisance, so whatever does not follow from the instruction is
equal pixel for pixel. The splits are the world's: `held_out` edits things, or into things, whose colour and shape (or
whose digits, or background and colour) no other split shows together; only the digits of `hard` are any, as they are
in the world's questions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image

from training.edit_verifier import verify_edit
from training.world import numbers, scenes
from training.world.edit_pages import (
    GROUNDS,
    STYLES,
    Page,
    TextPage,
    draw_page,
    draw_text_page,
    render_page,
    render_pair,
)
from training.world.edit_phrases import LANGUAGES, Reference, clause, instruction, ordinal_name
from training.world.edit_steps import HELD_OUT_GROUNDS, STEPS, Desk, Step, can_be_styled
from training.world.rendering import SIDE, draw_nuisance
from training.world.sample import SPLITS, NotAskable, stream
from training.world.scenes import HELD_OUT_PAIRS

EDIT_FAMILIES = ("recolour", "resize", "move", "add", "remove", "replace", "swap", "background", "text", "restyle",
                 "count", "multi")  # fmt: skip
SMALLEST_SIZE, LARGEST_SIZE = 32, 2048
CHINESE_SHARE = 1 / 3
WORDS = ("CAT", "DOG", "SUN", "BUS", "MILK", "BOOK", "FISH", "STOP", "OPEN", "EXIT", "SALE", "TAXI", "BREAD", "LIGHT",
         "MUSIC", "HOTEL", "WATER")  # fmt: skip
HELD_OUT_WORDS = ("CAR", "TREE", "HOUSE")  # never written in another split
WORD_SHARE = {"easy": 0.0, "train": 0.2, "test": 0.2, "held_out": 0.2, "hard": 0.2}
MONOSPACED = ("DejaVuSansMono", "DejaVuSansMono-Bold")
# Steps of a longer instruction; counting changes too much to be combined.
LETTERS = "ABCDEF"  # of what is meant; three steps name two things each at most
COMBINED = ("recolour", "resize", "move", "add", "remove", "replace", "background", "restyle")
# Of an instruction of many steps, how often each comes beside the others: what takes more to draw comes more often.
MANY = {"recolour": 1, "resize": 1, "move": 2, "add": 1, "remove": 1, "replace": 2, "restyle": 1, "swap": 1}
MANY_ON_A_NEW_GROUND = 0.4


@dataclass(frozen=True, eq=False)
class Edit:
    """One drawn edit.

    Attributes:
        before, after: RGB, `size` x `size`.
        instruction: what the user asks, in `language`.
        parts: (size, size) of integers: 0 where the pictures are equal, k >= 1 where the k-th change is, with a
            margin of some pixels for antialiasing.
        steps: the atomic edits in the world's short form.
        plan: what must change and what must stay.
        transcription: the dense reading of the picture before.
        reading: the same as the model is to write it: first what is meant, each with its letter, then the transcription
            with the letters behind the things, as the world's questions have it.
        pairs: the compositions it is about, before and after, as the splits withhold them.
        difficulty: 0 to 1, from the number of things, of steps, and the nuisance.
        pages: the scenes before and after.
        repaint: draws another page with this edit's nuisance (a wrong result to judge, say).
    """

    seed: int
    split: str
    family: str
    language: str
    before: Image.Image = field(repr=False)
    after: Image.Image = field(repr=False)
    instruction: str
    parts: np.ndarray = field(repr=False)
    steps: tuple[str, ...]
    plan: str
    transcription: str
    reading: str
    pairs: frozenset
    difficulty: float
    pages: tuple[Page, Page] | tuple[TextPage, TextPage] = field(repr=False)
    repaint: Callable[[Page | TextPage], Image.Image] = field(repr=False)

    @property
    def changed(self) -> np.ndarray:
        """(size, size) of booleans: where the pictures may differ."""
        return self.parts > 0

    @property
    def verifier(self):
        """result -> `EditScore`, the judge of this edit (`training.edit_verifier.verify_edit`)."""
        return partial(verify_edit, self.before, self.after, changed=self.parts)

    @property
    def response(self) -> str:
        """The plan as an assistant's turn: the reading and the plan as reasoning, the steps as its conclusion."""
        return f"<think>\n{self.reading}\n{self.plan}\n</think>\n" + "; ".join(self.steps)

    def conversation(self, question: str = "{instruction}", modality: str = "picture") -> list[dict]:
        """Picture and instruction, answered by the plan: what teaches a model to plan an edit.

        Args:
            question: what is asked, with `{instruction}` in it.
            modality: `picture`, or `text` for the twin that gets the transcription in words and no picture.
        """
        prompt = question.format(instruction=self.instruction)
        asked = [{"type": "image", "image": self.before}, {"type": "text", "text": prompt}]
        if modality == "text":
            asked = [{"type": "text", "text": f"Picture:\n{self.transcription}\n{prompt}"}]
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": self.response}]},
        ]


def draw_edit(
    seed: int,
    split: str = "train",
    family: str | None = None,
    language: str | None = None,
    size: int = SIDE,
    steps: int | None = None,
    things: int | None = None,
) -> Edit:
    """Draws the edit that belongs to (split, seed, family); equal arguments give equal edits.

    Args:
        seed: any integer.
        split: one of `SPLITS`.
        family: one of `EDIT_FAMILIES`, or None for a random one.
        language: `en` or `zh`, or None for either; the pictures do not depend on it.
        size: the pictures' side in pixels; the scene does not depend on it.
        steps: of the family `multi`: how many, as far as the page has room for them; two or three by default.
        things: on a page with that many steps: how many, 1 to 16, as far as there is room for them.

    Raises:
        ValueError: an argument is not among these; the message lists them.
    """
    for value, allowed, name in ((split, SPLITS, "split"), (family, (None, *EDIT_FAMILIES), "family"),
                                 (language, (None, *LANGUAGES), "language")):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"no {name} named {value!r}; there are {', '.join(a for a in allowed if a)}.")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError(f"size {size} cannot be drawn; give {SMALLEST_SIZE} to {LARGEST_SIZE} pixels.")
    if steps is not None and (family != "multi" or steps < 2):
        raise ValueError(f"steps is {steps} for the family {family!r}; give at least 2, of the family 'multi'.")
    if things is not None and (steps is None or not 1 <= things <= len(scenes.CELLS)):
        raise ValueError(f"things is {things} for steps {steps}; give 1 to {len(scenes.CELLS)}, with steps.")
    rng = stream("edit", split, seed, family, *(number for number in (steps, things) if number is not None))
    name = family or rng.choice(EDIT_FAMILIES)
    spoken = "zh" if rng.random() < CHINESE_SHARE else "en"
    spoken = language or spoken
    voice = stream("voice", split, seed, family, spoken)
    draw = _draw_text if name == "text" else partial(_draw_shapes, many=steps, things=things)
    while True:
        try:
            page, made, named = draw(rng, voice, spoken, split, name)
            nuisance = draw_nuisance(rng, split)
            pixels = rng.getrandbits(64)
            pair = render_pair(page, made[-1].page, pixels, nuisance, size)
        except NotAskable:
            continue
        break
    last = made[-1].page
    full = len(page.present) / 13 if isinstance(page, Page) else len(page.text) / 8
    return Edit(
        seed=seed,
        split=split,
        family=name,
        language=spoken,
        before=pair.before,
        after=pair.after,
        instruction=instruction([step.clause for step in made], spoken, voice),
        parts=pair.parts,
        steps=tuple(step.words for step in made),
        plan=_plan(page, last, made),
        transcription=page.transcription(),
        reading=_reading(page, named),
        pairs=frozenset().union(*(step.pairs for step in made)),
        difficulty=round(min(1.0, 0.5 * full + 0.25 * nuisance.noise / 22 + 0.125 * (len(made) - 1)), 3),
        pages=(page, last),
        repaint=partial(render_page, seed=pixels, nuisance=nuisance, size=size),
    )


def _draw_shapes(
    rng: random.Random, voice: random.Random, language: str, split: str, family: str, many: int | None = None,
    things: int | None = None,
):  # fmt: skip
    rare = split == "held_out"
    page = draw_page(rng, scenes.draw_scene(rng, split, things))
    if family == "restyle" or things:
        page = _with_styles(rng, page)
    desk = Desk(rng, voice, language, rare, page)
    kinds = [family]
    if many:
        # Some cannot be done on the page as it then is; a background is set once.
        kinds = rng.choices(tuple(MANY), tuple(MANY.values()), k=3 * many)
        if rng.random() < MANY_ON_A_NEW_GROUND:
            kinds.insert(rng.randrange(many), "background")
    elif family == "multi":
        kinds = rng.sample(COMBINED, 2 if split == "easy" or rng.random() < 0.6 else 3)
    steps: list[Step] = []
    for kind in kinds:
        named = len(desk.named)
        try:
            steps.append(STEPS[kind](desk, steps[-1].page if steps else page))
        except NotAskable:
            if not many:
                raise
            del desk.named[named:]  # who was picked for it is not meant
        if len(steps) == many:
            break
    if many and len(steps) < 2:
        raise NotAskable
    last = steps[-1].page
    about = frozenset().union(*(step.pairs for step in steps))
    if last.ground != page.ground:
        # A later step may have changed a colour that the background was chosen for.
        ground = next(name for name, rgb in GROUNDS.items() if rgb == last.ground)
        about |= {(ground, last.items[i].thing.colour) for i in last.present}
    if bool(about & (HELD_OUT_PAIRS | HELD_OUT_GROUNDS)) != rare:
        raise NotAskable
    return page, steps, desk.named


def _with_styles(rng: random.Random, page: Page) -> Page:
    """Some things striped, dotted or hollow beforehand, so that it can be undone."""
    for index, item in enumerate(page.items):
        if can_be_styled(item) and rng.random() < 0.25:
            page = page.with_item(index, replace(item, style=rng.choice(STYLES[1:4])))
    return page


def _draw_text(rng: random.Random, voice: random.Random, language: str, split: str, family: str):
    if rng.random() < WORD_SHARE[split]:
        old = rng.choice(WORDS)
        words = HELD_OUT_WORDS if split == "held_out" else WORDS
        new = rng.choice([w for w in words if len(w) == len(old) and w != old])
        page = draw_text_page(rng, old, MONOSPACED)
        said = clause("word", language, voice, old=old, new=new)
        return page, [Step(replace(page, text=new), said, f"{old} becomes {new}", frozenset({("word", new)}))], []
    old, new, at = _draw_numbers(rng, split)
    page = draw_text_page(rng, old)
    if at is None:
        said, words = clause("number", language, voice, old=old, new=new), f"{old} becomes {new}"
    else:
        words = f"digit {at + 1} {old[at]} becomes {new[at]}"
        if old.count(old[at]) == 1 and rng.random() < 0.6:
            said = clause("digit", language, voice, old=old[at], new=new[at])
        else:
            ordinal = ordinal_name(at, len(old), language, voice)
            said = clause("digit_at", language, voice, ordinal=ordinal, new=new[at])
    pairs = frozenset(("digits", text[i : i + 2]) for text in (old, new) for i in range(len(text) - 1))
    return page, [Step(replace(page, text=new), said, words, pairs)], []


def _draw_numbers(rng: random.Random, split: str) -> tuple[str, str, int | None]:
    """Two numbers of one length, and the only digit in which they differ; None where all of it is changed."""
    whole = rng.random() < 0.4
    while True:
        old = numbers.draw_number(rng, "train" if split == "held_out" else split).text
        at = rng.choice([i for i in range(len(old)) if i < 5 or i == len(old) - 1])  # the others have no ordinal
        new = numbers.draw_number(rng, split).text if whole else old[:at] + rng.choice("0123456789") + old[at + 1 :]
        withheld = any(pair in new for pair in numbers.HELD_OUT_BIGRAMS)
        starts_well = new[0] != "0" or len(new) == 1
        if (
            len(new) == len(old)
            and new != old
            and starts_well
            and (withheld == (split == "held_out") or split == "hard")
        ):
            return old, new, None if whole or len(old) == 1 else at


def _reading(page: Page | TextPage, named: list[tuple[Reference, tuple[int, ...]]]) -> str:
    """See `Edit.reading`. A thing that is meant twice has the letters of both."""
    legend, marks = [], {}
    for letter, (reference, indices) in zip(LETTERS, named, strict=False):
        legend.append(f"{reference.words} {letter}")
        for index in indices:
            marks[index] = f"{marks.get(index, page.items[index].thing.full_name)} {letter}"
    return f"? {', '.join(legend)}\n{page.transcription(marks)}" if legend else page.transcription()


def _plan(page: Page | TextPage, last: Page | TextPage, steps: list[Step]) -> str:
    if isinstance(page, TextPage):
        same = [i for i, (a, b) in enumerate(zip(page.text, last.text, strict=True)) if a == b]
        kept = [f"digit {i + 1} {page.text[i]}" for i in same if page.text.isdigit()]
    else:
        things = [page.items[i].thing for i in page.present if page.items[i] == last.items[i]]
        kept = [f"{t.place} {t.full_name}" for t in scenes.reading_order(things)]
    if page.ground == last.ground:
        kept.append("background")
    return f"change: {'; '.join(s.words for s in steps)}\nkeep: {', '.join(kept) or 'nothing'}"
