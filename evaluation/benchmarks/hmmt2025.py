"""HMMT February 2025: thirty problems of the Harvard-MIT tournament, whose answers are values in LaTeX."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.competitions import LAYOUT, load_problems, percent_right
from evaluation.scoring.competition_answers import boxed, is_list, last_whole_number, parts_of
from evaluation.scoring.modern import verify

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

MAX_CHARACTERS = 1_000  # of a final answer; the longest true one has fewer than a hundred
MAX_PARTS = 8  # of an answer that is a list; each is held against each


class Hmmt2025:
    """Right is the same value: as text once both are in one form, or else as math-verify compares them.

    MathArena, where the problems are published, compares with a symbolic parser of its own, in whose place math-verify
    stands here; where nothing is boxed it takes the last whole number, and so does this. The order of a list does not
    matter.
    """

    name = "hmmt2025"
    title = "HMMT February 2025"
    version = "1"
    splits = ("test",)
    source = "MathArena/hmmt_feb_2025"
    layout = LAYOUT

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the field `problem`."""
        if split not in self.splits:
            raise BenchmarkError(f"HMMT February 2025 has no split {split!r}; it has 'test' alone.")
        return load_problems(self.name, location, self.source, INSTRUCTION, prompt)

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`.

        Raises:
            BenchmarkError: math-verify is needed and cannot be started.
        """
        said, note = boxed(response), ""
        if said is None:
            said, note = last_whole_number(response), "nothing is boxed, so the last whole number counts"
        if said is None or not said.strip():
            return Verdict(0.0, note="there is no answer")
        if len(said) > MAX_CHARACTERS:
            return Verdict(0.0, note=f"the answer has {len(said):,} characters, and is not read")
        truth = question.truth["answer"]
        several = is_list(truth)
        found = parts_of(said, several)
        return Verdict(float(_same(found, parts_of(truth, several))), ", ".join(found), note=note)

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The accuracy, in per cent."""
        return {"accuracy": percent_right(scored)}


def _same(said: list[str], true: list[str]) -> bool:
    """Whether each said part is another true one."""
    if said == true:
        return True
    if len(said) != len(true) or len(true) > MAX_PARTS:
        return False
    left = list(true)
    for part in said:
        same = next((place for place, truth in enumerate(left) if part == truth or _verified(part, truth)), None)
        if same is None:
            return False
        del left[same]
    return True


def _verified(said: str, true: str) -> bool:
    verdict = verify(f"\\boxed{{{said}}}", [true])
    if verdict is None:
        raise BenchmarkError("math-verify cannot be started; check that `pip install math-verify` is done.")
    return verdict == 1.0


BENCHMARK = Hmmt2025()
