"""Joins scenes, pictures and questions: a seed in, a `Sample` out."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from training.world import charts, clocks, mazes, numbers, questions, rendering, scenes
from training.world.sample import SPLITS, NotAskable, Question, Sample, stream


@dataclass(frozen=True)
class Family:
    """How one family of questions is made.

    Attributes:
        draw: (generator, split) -> scene.
        render: (scene, generator, nuisance) -> picture.
        ask: (scene, generator) -> `Question`; may raise `NotAskable`.
        size: scene -> 0 to 1, how much there is to see.
        dense: like `draw`, a fuller scene for transcription alone; None where `draw`'s is full enough. It need not
            be one that `ask` can ask about.
    """

    draw: Callable
    render: Callable
    ask: Callable[..., Question]
    size: Callable[..., float]
    dense: Callable | None = None


REGISTRY: dict[str, Family] = {
    name: Family(scenes.draw_scene, rendering.render, ask, lambda s: len(s.things) / 13)
    for name, ask in questions.FAMILIES.items()
}
REGISTRY["number"] = Family(
    numbers.draw_number, numbers.render, numbers.number, lambda s: len(s.transcription()) / 8, numbers.draw_page
)
REGISTRY["arithmetic"] = Family(numbers.draw_arithmetic, numbers.render, numbers.arithmetic, lambda s: len(s.text) / 9)
for _kind in ("bar", "line"):
    REGISTRY[f"{_kind}_chart"] = Family(
        lambda rng, split, kind=_kind: charts.draw_chart(rng, split, kind),
        charts.render,
        charts.FAMILIES[f"{_kind}_chart"],
        lambda s: len(s.values) / 6,
    )
REGISTRY["clock"] = Family(clocks.draw_clock, clocks.render, clocks.clock, lambda s: 0.8 if s.minute % 5 else 0.4)
REGISTRY["maze"] = Family(mazes.draw_maze, mazes.render, mazes.maze, lambda s: len(s.open_cells) / 12)

FAMILIES = tuple(REGISTRY)
TASKS = ("question", "transcribe", "locate", "match")


def draw_sample(
    seed: int, split: str = "test", family: str | None = None, modality: str = "picture", task: str = "question"
) -> Sample:
    """Draws the sample that belongs to (split, seed, family, modality, task); equal arguments give equal samples.

    Args:
        seed: any integer.
        split: one of `SPLITS`.
        family: one of `FAMILIES`, or None for a random one.
        modality: `picture`, or `text` for the twin that gets the transcription in words and no picture.
        task: `question`; `transcribe` (say everything there is, in order); `locate` (a box for every shape); or `match`
            (transcribe a scene of shapes with marks behind those of several kinds).

    Raises:
        ValueError: an argument is not among these; the message lists them.
    """
    for value, allowed, name in ((split, SPLITS, "split"), (modality, ("picture", "text"), "modality"),
                                 (task, TASKS, "task"), (family, (None, *FAMILIES), "family")):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"no {name} named {value!r}; there are {', '.join(str(a) for a in allowed if a)}.")
    rng = stream("world", split, seed, family, modality, task)
    name = family or rng.choice(FAMILIES)
    name = {"locate": "grounding", "match": "caption"}.get(task, name)
    chosen = REGISTRY[name]
    scene, question = _draw(chosen, rng, split, task)
    nuisance = rendering.draw_nuisance(rng, split)
    picture: Image.Image | None = None
    transcription, prompt, reasoning = scene.transcription(), question.prompt, question.steps
    # Seeing, and judging what is seen, are one pass over the picture. A twin goes over it too where there is something
    # to judge; not for boxes, which are all it is told.
    marked = scene.transcription(question.said) if question.said else transcription
    if task == "question" and (modality == "picture" or (question.said and name != "grounding")):
        reasoning = "\n".join(part for part in (question.legend, marked, question.steps) if part)
    if modality == "picture":
        picture = chosen.render(scene, rng, nuisance)
    else:
        prompt = f"Picture:\n{_in_words(scene, name, task, rng)}\n{question.prompt}"
    return Sample(
        seed=seed,
        split=split,
        family=name if task == "question" else task,
        picture=picture,
        prompt=prompt,
        reasoning=reasoning,
        conclusion=question.answer if task != "question" else f"{question.evidence}.\nAnswer: {question.answer}",
        answer=question.answer,
        verifier=question.verifier,
        difficulty=round(min(1.0, 0.7 * chosen.size(scene) + 0.3 * nuisance.noise / 22), 3),
        transcription=transcription,
        scene=scene,
    )


def _draw(chosen: Family, rng: random.Random, split: str, task: str):
    """A scene, and what is asked about it; scenes that do not allow the question are drawn again."""
    if task == "transcribe" and chosen.dense is not None:
        scene = chosen.dense(rng, split)
        return scene, _transcribe(scene, rng)
    while True:
        scene = chosen.draw(rng, split)
        try:
            question = chosen.ask(scene, rng)
        except NotAskable:
            continue
        if task == "transcribe":
            return scene, _transcribe(scene, rng)
        if task == "locate" and scene.things:
            return scene, _locate(scene, rng)
        if task == "match" and scene.things:
            return scene, questions.match(scene, rng)
        if task == "question":
            return scene, _as_choice(question, rng) if rng.random() < 0.15 else question


def _in_words(scene, family: str, task: str, rng: random.Random) -> str:
    """What the twin is given for the picture.

    To put in order what is told out of order is sixteen lookups by content: the decoder's first skill, taught densely.
    And nobody can say where a box ends from the name of its cell, so those twins get the boxes.
    """
    if family == "grounding" and task != "transcribe":
        lines = _boxes(scene)
        rng.shuffle(lines)
        return "\n".join(lines)
    if task in ("question", "match"):
        return scene.transcription()
    entries = scene.entries()
    rng.shuffle(entries)
    return " ".join(entries)


def _transcribe(scene, rng: random.Random) -> Question:
    words = scene.transcription()
    prompt = rng.choice(("Transcribe the picture.", "Say all there is, in order."))
    return Question(prompt, "", "", words, {"kind": "exact", "truth": [words]})


def _locate(scene: scenes.Scene, rng: random.Random) -> Question:
    prompt = rng.choice(("Locate every object.", "Give the box of every object."))
    answer = "\n".join(_boxes(scene))
    return Question(prompt, "", "", answer, {"kind": "exact", "truth": [answer]})


def _boxes(scene: scenes.Scene) -> list[str]:
    return [f"{t.place} {t.name} [" + ", ".join(f"{v:02d}" for v in rendering.box(t)) + "]" for t in scene.things]


def _as_choice(question: Question, rng: random.Random) -> Question:
    """The same question with four options, where its answer is one of a kind that has rivals."""
    rivals = _rivals(question, rng)
    if rivals is None:
        return question
    options = [question.answer, *rivals]
    rng.shuffle(options)
    letter = "ABCD"[options.index(question.answer)]
    listed = "\n".join(f"{name}) {option}" for name, option in zip("ABCD", options, strict=True))
    # One option after another, up to the one that says the same: a comparison a step, and never a search.
    tried = ", ".join(f"{name} {option}" for name, option in zip("ABCD", options, strict=True) if name <= letter)
    steps = (question.steps + "\n" if question.steps else "") + f"{question.answer}: {tried}"
    prompt = f"{question.prompt}\n{listed}\n" + rng.choice(("Answer with the letter.", "Choose one letter."))
    evidence = f"{question.evidence}. {question.answer} is {letter}"
    verifier = {"kind": "choice", "truth": letter, "options": options}
    return Question(prompt, steps, evidence, letter, verifier, question.legend, question.said)


def _rivals(question: Question, rng: random.Random) -> list[str] | None:
    """Three wrong answers of the right answer's kind, or None where there is no such kind (yes/no, boxes, lists)."""
    answer, kind = question.answer, question.verifier["kind"]
    if kind == "numeric":
        value = int(answer)
        near = [v for v in range(max(0, value - 5), value + 6) if v != value]
        return [str(v) for v in rng.sample(near, 3)]
    if kind == "time":
        hour, minute = map(int, answer.split(":"))
        near = {f"{(hour + dh - 1) % 12 + 1}:{(minute + dm) % 60:02d}" for dh in (-1, 0, 1) for dm in (0, 15, 30, 45)}
        return rng.sample(sorted(near - {answer}), 3)
    if kind != "exact":
        return None
    last = answer.split()[-1]
    if answer in scenes.COLOURS or answer in scenes.SHAPES or answer in mazes.MOVES:
        pool = next(p for p in (scenes.COLOURS, scenes.SHAPES, tuple(mazes.MOVES)) if answer in p)
    elif last in scenes.SHAPES and len(answer.split()) == 2:
        pool = [f"{c} {s}" for c, s in scenes.TRAINING_PAIRS]
    else:
        return None
    return rng.sample([p for p in pool if p != answer], 3)
