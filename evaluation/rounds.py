"""The trajectories of a coordinated answer judged one by one: what a vote over a round would have said.

Majority over a round is self-consistency (Wang et al. 2023) on the very trajectories that the synthesis read.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evaluation.benchmark import Benchmark, Question
from evaluation.runs import Answer, Member
from evaluation.statistics import majority

Rounds = tuple[tuple[Member, ...], ...]


def judged_rounds(benchmark: Benchmark, question: Question, rounds: Rounds) -> Rounds:
    """The rounds with a verdict on the message of every finished trajectory.

    Without one where a judge is asked: it would be paid for each.
    """
    if getattr(benchmark, "judge", None) is not None:
        return rounds

    def judged(member: Member) -> Member:
        if not member.finished:
            return member
        verdict = benchmark.score(question, member.message)
        return replace(member, score=verdict.score, parsed=verdict.parsed)

    return tuple(tuple(map(judged, members)) for members in rounds)


def finished_of(answer: Answer, round: int) -> list[Member]:
    """The finished trajectories of a round, from 0; [] where one has no verdict."""
    members = answer.rounds[round] if round < len(answer.rounds) else ()
    finished = [member for member in members if member.finished]
    return finished if all(member.score is not None for member in finished) else []


def majority_of_round(rows: Sequence[Answer], round: int) -> float | None:
    """Of a question's answers: the score of the commonest answer in a round, the mean over samples."""
    rounds = [members for row in rows if (members := finished_of(row, round))]
    if not rounds:
        return None
    return float(np.mean([majority([m.parsed for m in own], [m.score for m in own]) for own in rounds]))


def of_rounds(had: Sequence[Sequence[Answer]], count: int) -> list[dict[str, list[float]]]:
    """Of each of `count` rounds before the last, by figure, a value a question that has verdicts there.

    The figures are `score` (of a trajectory by itself), `majority`, `best` (as if the right one were always picked),
    `trajectories` (those that finished) and `tokens` (prompt and completion, cancelled ones not counted).
    """
    figures = []
    for round in range(count):
        values: dict[str, list[float]] = {name: [] for name in ("score", "majority", "best", "trajectories", "tokens")}
        for rows in had:
            rounds = [members for row in rows if (members := finished_of(row, round))]
            if not rounds:
                continue
            scores = [[member.score for member in members] for members in rounds]
            values["score"].append(float(np.mean([np.mean(own) for own in scores])))
            values["majority"].append(majority_of_round(rows, round))
            values["best"].append(float(np.mean([max(own) for own in scores])))
            values["trajectories"].append(float(np.mean([len(own) for own in scores])))
            tokens = [sum(m.prompt_tokens + m.completion_tokens for m in members) for members in rounds]
            values["tokens"].append(float(np.mean(tokens)))
        figures.append(values)
    return figures
