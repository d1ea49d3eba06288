"""AIME 2025, I and II: thirty problems whose answers are whole numbers from 0 to 999."""

import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.competitions import LAYOUT, load_problems, percent_right
from training.verifiers import final_answer

INSTRUCTION = (
    "Please reason step by step, and put your final answer within \\boxed{}. "
    "The answer is a whole number between 0 and 999."
)

# What may stand around the number: signs of LaTeX and spaces; what it is the value of, to the left of "=".
_BESIDE = re.compile(r"\\[,;:! ]|\\(?:left|right)(?![a-z])|[\s$,]|\{,\}|\\(?:text|mathrm)\{[^{}]*\}")
_INTEGER = re.compile(r"(?:[^=]*=)*\{?([-+]?\d{1,20})\}?(?:\.0*)?")


class Aime2025:
    """Right is the same whole number: in the last `\\boxed{}`, or else where the response says what the answer is."""

    name = "aime2025"
    title = "AIME 2025"
    version = "1"
    splits = ("test",)
    source = "math-ai/aime25"
    layout = LAYOUT

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the field `problem`. `MathArena/aime_2025` has the topics too."""
        if split not in self.splits:
            raise BenchmarkError(f"AIME 2025 has no split {split!r}; it has 'test' alone.")
        questions = load_problems(self.name, location, self.source, INSTRUCTION, prompt)
        for question in questions:
            if not re.fullmatch(r"\d{1,3}", question.truth["answer"]):
                raise BenchmarkError(f"{question.id}: its answer is {question.truth['answer']!r}, no number to 999.")
        return questions

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`."""
        found = _INTEGER.fullmatch(_BESIDE.sub("", final_answer(response)))
        if found is None:
            return Verdict(0.0)
        said = int(found[1])
        return Verdict(float(said == int(question.truth["answer"])), str(said))

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The accuracy, in per cent."""
        return {"accuracy": percent_right(scored)}


BENCHMARK = Aime2025()
