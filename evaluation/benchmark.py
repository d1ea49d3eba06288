"""What a benchmark is: questions, and a scorer that judges responses to them.

Every benchmark is one file of `evaluation/benchmarks/`; the runner, the report and the command line know only this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable


class BenchmarkError(ValueError):
    """The data is not there, or not in its published layout; one line that says what to put where."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique in its benchmark, the data's own where it has one.
        conversation: `[{role, content: [{type: image, image: PIL or path} | {type: text, text}, …]}]`, the prompt in
            the benchmark's own format.
        truth: what the scorer needs besides the response; plain JSON, since it is written beside every response.
        groups: what the report breaks scores down by, e.g. `{"subject": "algebra", "level": "3"}`.
    """

    id: str
    conversation: list[dict] = field(hash=False)
    truth: dict = field(hash=False)
    groups: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_pictures(self) -> bool:
        contents = (turn["content"] for turn in self.conversation if not isinstance(turn["content"], str))
        return any(part["type"] == "image" for content in contents for part in content)


@dataclass(frozen=True)
class Verdict:
    """What a scorer says of one response.

    Attributes:
        score: by the benchmark's official rule, in [0, 1]; None where the answer is not published.
        parsed: the answer that the rule took from the response; "" where it found none.
        guessed: the official rule drew this answer at random.
        strict: the score without guessing: 0 where a scored answer is `guessed`, else `score`.
        modern: what `math-verify` says of the same response, where it applies; reported beside, never instead.
        note: anything a reader of the sample should know (a named quirk, a judge's words), in a line.
    """

    score: float | None
    parsed: str = ""
    guessed: bool = False
    modern: float | None = None
    note: str = ""

    @property
    def strict(self) -> float | None:
        return 0.0 if self.guessed and self.score is not None else self.score


class Benchmark(Protocol):
    """Data plus a scorer.

    Attributes:
        name: of the command line, e.g. `mathvision`.
        title: for people, e.g. `MathVision`.
        version: of our loader, prompt and scorer together; raised when any of them may change a number.
        splits: names that `load` takes; the first is the default.
        source: the hub id of the published data.
        layout: what a local folder must hold, in a line; shown where the data is missing.
    """

    name: str
    title: str
    version: str
    splits: tuple[str, ...]
    source: str
    layout: str

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """The split's questions, in the data's order.

        Args:
            location: a local folder in the published layout, or a hub id; None takes `source`.
            prompt: a template that replaces the benchmark's own, with the fields its docstring names.

        Raises:
            BenchmarkError: no such split, or the data is missing or malformed.
        """
        ...

    def score(self, question: Question, response: str) -> Verdict:
        """Judges one response (reasoning already taken off). Never raises, whatever the response holds."""
        ...

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The official figures of one response a question, under their official keys; plain JSON.

        Only of what has a score.
        """
        ...


@runtime_checkable
class JudgedElsewhere(Protocol):
    """What a benchmark has besides, if it has a split whose answers are known to its own server alone."""

    def submission(self, answered: Sequence[tuple[Question, str]]) -> dict:
        """The file that the server takes, of one response a question; plain JSON."""
        ...
