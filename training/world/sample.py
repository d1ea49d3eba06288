"""What the world hands out: one question with everything needed to ask, to teach and to judge it."""

import random
from dataclasses import dataclass, field

from PIL import Image

# `easy` and `train` are for training alone; `easy` is the first rung, one thing a cell and nothing in the way. `test`
# has the distribution of `train` from seeds of its own; `held_out` shows compositions (colour-shape pairs, values,
# times ...) that training never draws; `hard` has more, smaller and noisier of everything.
SPLITS = ("easy", "train", "test", "held_out", "hard")


class NotAskable(Exception):
    """This scene does not allow this question (nothing unique to point at, say); draw another scene."""


@dataclass(frozen=True)
class Question:
    """A question about a scene; all words, no pixels.

    Attributes:
        prompt: what the user asks.
        steps: the written reasoning after the transcription, one step a line; may be empty.
        legend: what is looked for, each with the mark it gets, as the transcription will say it; may be empty.
        said: how the transcription says each of the scene's things with this question in mind; empty for as always.
        evidence: what was seen, item by item, in brief.
        answer: the canonical answer.
        verifier: `{"kind", "truth", ...}`, as `training.verifiers.Verifier` reads it.
    """

    prompt: str
    steps: str
    evidence: str
    answer: str
    verifier: dict
    legend: str = ""
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One drawn question.

    Attributes:
        picture: RGB, or None for a text-only twin, whose prompt holds the transcription in words.
        transcription: the dense reading of the picture; with the question's marks in it, part of the reasoning.
        difficulty: 0 to 1, from the number of things in the scene and the nuisance.
    """

    seed: int
    split: str
    family: str
    picture: Image.Image | None
    prompt: str
    reasoning: str
    conclusion: str
    answer: str
    verifier: dict = field(hash=False)
    difficulty: float
    transcription: str
    scene: object = field(hash=False, repr=False)

    @property
    def response(self) -> str:
        """The assistant's turn: `<think>` reasoning, then the conclusion with its evidence and answer."""
        if not self.reasoning:
            return self.conclusion
        return f"<think>\n{self.reasoning}\n</think>\n{self.conclusion}"

    def conversation(self) -> list[dict]:
        """The sample in the ecosystem's shape, ready for a processor or a trainer."""
        content = [{"type": "text", "text": self.prompt}]
        if self.picture is not None:
            content.insert(0, {"type": "image", "image": self.picture})
        return [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": self.response}]},
        ]


def stream(*key: object) -> random.Random:
    """A generator that depends on `key` alone, the same on every machine and Python."""
    return random.Random("/".join(map(str, key)))
