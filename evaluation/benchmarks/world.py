"""Our own world: drawn pictures, questions that are answered from the scene, judged as `training report` does."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.prompts import prompt_from
from training.intervals import family_figures, mean_of
from training.verifiers import Verifier, final_answer, verify
from training.world import FAMILIES, draw_sample

PER_FAMILY = 200  # as `training report` asks by default


class World:
    """The families of `training.world` on new scenes (test), on compositions training never drew, and the hard split.

    Questions come seed by seed with one of every family, so that the first N are N across the families, balanced.
    """

    name = "world"
    title = "World"
    version = "1"
    splits = ("test", "held_out", "hard")
    source = "drawn"
    layout = f"nothing to fetch: the questions are drawn; a number is so many a family ({PER_FAMILY})"

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `location` is the number of questions a family, seeds from 0.

        Args:
            prompt: with the field `question`.
        """
        if split not in self.splits:
            raise BenchmarkError(f"the world has no split {split!r} to be judged on; there are {list(self.splits)}.")
        count = _count(location)
        write = prompt_from(prompt, ["question"]) if prompt is not None else None
        questions = []
        for seed in range(count):
            for family in FAMILIES:
                sample = draw_sample(seed, split, family)
                conversation = sample.conversation()[:1]
                if write is not None:
                    conversation[0]["content"][-1] = {"type": "text", "text": write(question=sample.prompt)}
                truth = {"verifier": sample.verifier, "answer": sample.answer}
                questions.append(Question(f"{family}-{seed}", conversation, truth, {"family": family}))
        return questions

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`. Answers are the same where their texts are, but for case and spaces."""
        verifier = Verifier.from_dict(question.truth["verifier"])
        said = final_answer(response, block=verifier.kind == "objects")
        return Verdict(verify(response, verifier), " ".join(said.casefold().split()))

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """`families` and their unweighted `mean`, as `training report` gives them."""
        figures = {}
        for family in FAMILIES:
            own = [(question, verdict) for question, verdict in scored if question.groups["family"] == family]
            if own:
                rewards = [verdict.score for _, verdict in own]
                figures[family] = family_figures(rewards, [question.truth["answer"] for question, _ in own])
        mean, interval = mean_of(figures) if figures else (None, None)
        return {"families": figures, "mean": mean, "mean_interval": interval}


def _count(location: str | Path | None) -> int:
    if location is None:
        return PER_FAMILY
    if not str(location).isdecimal() or int(location) < 1:
        raise BenchmarkError(f"the world is drawn, not read from {str(location)!r}; give the questions a family.")
    return int(location)


BENCHMARK = World()
