"""Edits that are thought about: plan before, choose among several, inspect after.

The model that sees does all three, through one narrow function, `Ask`: a conversation in, its answer out. By default
that is the pipeline's own model, greedily; a caller may hand in anything else, rounds of parallel reasoning for
instance. The questions are plain templates, so that another model can be asked in its own words.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from edit.conditioning import ConditioningError
from edit.inputs import EditError, Judge
from edit.pipeline import EditPipeline
from vlm.pictures import open_picture
from vlm.reasoning import CLOSE_TAG, OPEN_TAG, split_reasoning

Ask = Callable[[list[dict]], str]

DECISIONS = ("accept", "retry", "roll back")


@dataclass(frozen=True)
class Questions:
    """What the model is asked; `{instruction}` is the edit.

    Attributes:
        plan: about the picture, before; the painter is told its answer too, see `Conditioning.planned`.
        inspect, score: about the picture before and the picture after, in this order.
    """

    plan: str = "Edit: {instruction} Say briefly what must change in this picture, and what must stay as it is."
    inspect: str = (
        "The second picture is an edit of the first: {instruction} Was this done, and nothing else changed? Answer "
        "accept, retry if another attempt would do better, or roll back if the first picture should stay. Say why."
    )
    score: str = (
        "The second picture is an edit of the first: {instruction} How well was this done, with nothing else changed? "
        "Answer with a number from 0 to 10."
    )


@dataclass(frozen=True)
class Verdict:
    """What an inspection found: one of `DECISIONS`, and the model's words."""

    decision: str
    words: str = ""


@dataclass(frozen=True)
class Attempt:
    """One result on the way: its seeds, the one chosen, the judge's scores if there was one, and the verdict."""

    image: Image.Image
    seeds: tuple[int, ...]
    scores: list[float] | None
    verdict: Verdict | None


@dataclass
class Thought:
    """The picture that stands in the end, and how it came about.

    Attributes:
        told: the painter: the instruction, and after it as much of the plan as fits.
        plan: empty where none was asked for.
    """

    image: Image.Image
    told: str
    plan: str = ""
    attempts: list[Attempt] = field(default_factory=list)


def own_model(pipeline: EditPipeline, max_new_tokens: int = 224) -> Ask:
    """An `Ask` of the pipeline's own model: the likeliest words, the reasoning before them left out.

    Args:
        max_new_tokens: reasoning included; mini's plans take up to about 165.
    """

    @torch.no_grad()
    def ask(conversation: list[dict]) -> str:
        model, processor = pipeline.vision_language_model, pipeline.processor
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        ).to(model.device, model.dtype)
        written = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return _after_reasoning(processor.tokenizer, written[0, inputs["input_ids"].shape[1] :].tolist())

    return ask


def _after_reasoning(tokenizer, written: list[int]) -> str:
    """The marks of reasoning may be special tokens (mini's are): to be split at before such tokens are dropped."""
    dropped = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids([OPEN_TAG, CLOSE_TAG]))
    return split_reasoning(tokenizer.decode([token for token in written if token not in dropped]))[1]


def plan(ask: Ask, picture: Image.Image, instruction: str, questions: Questions = Questions()) -> str:
    """What must change and what must stay, in the model's words; may be empty."""
    return ask(_about([picture], questions.plan.format(instruction=instruction))).strip()


def inspect(
    ask: Ask, before: Image.Image, after: Image.Image, instruction: str, questions: Questions = Questions()
) -> Verdict:
    """The verdict on an edit. An answer that names no decision accepts: silence is no reason to throw work away."""
    words = ask(_about([before, after], questions.inspect.format(instruction=instruction)))
    found = re.search(r"\b(accept|retry|roll[- ]?back)", words.lower())
    decision = "accept" if found is None else found[1]
    return Verdict("roll back" if decision.startswith("roll") else decision, words)


def judge_by(ask: Ask, questions: Questions = Questions()) -> Judge:
    """A judge for `EditPipeline`: the number from 0 to 10 in the model's answer, 0 where there is none."""

    def judge(picture: Image.Image, instruction: str, candidates: Sequence[Image.Image]) -> list[float]:
        question = questions.score.format(instruction=instruction)
        answers = [ask(_about([picture, candidate], question)) for candidate in candidates]
        numbers = [re.search(r"\d+(?:\.\d+)?", answer) for answer in answers]
        return [min(float(number[0]), 10.0) if number else 0.0 for number in numbers]

    return judge


def think_and_edit(
    pipeline: EditPipeline,
    picture,
    instruction: str,
    *,
    planning: bool = False,
    reflections: int = 0,
    seeds: int = 1,
    seed: int = 0,
    ask: Ask | None = None,
    judge: Judge | None = None,
    questions: Questions = Questions(),
    **call,
) -> Thought:
    """One edit of one picture, thought about as asked; with everything off it is a plain edit.

    Args:
        picture: in any form `vlm.open_picture` reads.
        planning: the model first writes a plan, and the painter is told instruction and plan.
        reflections: how many results are inspected at most. After `accept` the result stands; after `retry` the
            picture is edited again from other seeds; after `roll back`, or where the last one inspected is not
            accepted either, the picture stands as it was.
        seeds: candidates an attempt, of which `judge` keeps the best; without one, the model scores them.
        seed: the first; attempt a uses seed + a * seeds and the ones after it.
        ask: who plans, inspects and scores; the pipeline's own model by default.
        call: further arguments of the pipeline.

    Raises:
        As the pipeline, and EditError for a number out of range.
    """
    for name, value, least in (("reflections", reflections, 0), ("seeds", seeds, 1)):
        if not isinstance(value, int) or not least <= value <= 64:
            raise EditError(f"{name} is {value!r}; use a whole number from {least} to 64.")
    picture = open_picture(picture)
    ask = ask or own_model(pipeline)
    thought = Thought(picture, instruction)
    if planning:
        thought.plan = plan(ask, picture, instruction, questions)
        thought.told = _with_plan(pipeline, picture, instruction, thought.plan)
    if seeds > 1 and judge is None:
        judge = judge_by(ask, questions)
    for attempt in range(max(1, reflections)):
        own = tuple(range(seed + attempt * seeds, seed + (attempt + 1) * seeds))
        made = pipeline(
            picture,
            thought.told,
            num_images_per_prompt=seeds,
            generator=[torch.Generator().manual_seed(one) for one in own],
            # Candidates are judged by what was asked, not by what was planned.
            judge=None if seeds == 1 else lambda before, _, after: judge(before, instruction, after),
            **call,
        )
        if pipeline.interrupt:
            thought.image = made.images[0]
            return thought
        image, scores = made.images[0], made.scores[0] if made.scores else None
        verdict = inspect(ask, picture, image, instruction, questions) if reflections else None
        thought.attempts.append(Attempt(image, own, scores, verdict))
        if verdict is None or verdict.decision == "accept":
            thought.image = image
            return thought
        if verdict.decision == "roll back":
            break
    return thought


def _with_plan(pipeline: EditPipeline, picture: Image.Image, instruction: str, planned: str) -> str:
    """What the painter is told of a planned edit, the plan's end cut off where not all of it can be read."""
    while planned:
        told = pipeline.conditioning.with_plan(instruction, planned)
        try:
            pipeline.encode_prompt([picture], [told])
        except ConditioningError:
            planned = planned[: len(planned) * 3 // 4]
        else:
            return told
    return instruction


def _about(pictures: list[Image.Image], question: str) -> list[dict]:
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
