"""The figures of a run, as plain JSON.

Scores are means over questions, of the mean over a question's samples. Intervals are 95 %, by bootstrap over questions;
where all scores are 0 or 1, Wilson's is beside it, which knows that three of three right is not certainty.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from evaluation.benchmark import Benchmark
from evaluation.rounds import of_rounds
from evaluation.runs import Answer, Asked, Run
from evaluation.statistics import bootstrap_interval, majority_at, pass_at
from training.intervals import wilson


def summarize(run: Run, benchmark: Benchmark) -> dict:
    """Everything a report says in figures.

    `score` is of the questions with an answer, and `score_failed_as_0` counts failed answers as wrong; questions that
    the run has not come to, and withheld ones, are in neither; nor are those whose answers are not published, which
    `unjudged` counts. `blind` questions, asked without the pictures that they have, are like any other. `strict` counts
    guesses of the official rule as wrong. `official` holds the benchmark's own figures, of every judged question's
    first answer.
    """
    settings = run.settings
    questions = {asked.id: asked for asked in run.questions}
    answers = run.by_question()
    had = answered(run)
    scored = judged(had)
    failed = {id: [a for a in rows if a.error] for id, rows in answers.items()}
    failed = {id: rows for id, rows in failed.items() if rows}
    withheld = [asked.id for asked in run.questions if not asked.given]
    blind = [asked.id for asked in run.questions if is_blind(asked, run)]
    shown = {asked.id for asked in run.questions if asked.question.has_pictures and not settings.blind}
    every = all_of(had)
    # Whether a failed answer would have had a score is known where all others have one.
    started = [rows for rows in answers.values() if rows and len(scored) == len(had)]
    wanted = len(answers) * settings.samples
    summary = {
        "benchmark": settings.benchmark,
        "title": benchmark.title,
        "version": benchmark.version,
        "split": settings.split,
        "model": settings.model,
        "how": how(run),
        "settings": asdict(settings),
        "questions": len(run.questions),
        "withheld": {"count": len(withheld), "ids": withheld},
        "blind": {"count": len(blind), "ids": blind},
        "answers": len(every),
        "unanswered": wanted - sum(map(len, answers.values())),
        "failed": {"count": sum(map(len, failed.values())), "ids": list(failed),
                   "at_pictures": bool(shown & failed.keys()) and not shown & had.keys()},
        "cut_off": sum(answer.finish == "length" for answer in every),
        "unjudged": len(had) - len(scored),
        "score": figure([mean_of(rows) for rows in scored.values()]),
        "score_failed_as_0": figure([mean_of(rows, zero=True) for rows in started]),
        "guessed": sum(answer.guessed for answer in every),
        "strict": figure([float(np.mean([a.verdict.strict for a in rows])) for rows in scored.values()]),
        "modern": figure([
            float(np.mean([a.modern for a in rows if a.modern is not None]))
            for rows in scored.values() if any(a.modern is not None for a in rows)
        ]),
        "groups": _groups(run, scored),
    }  # fmt: skip
    if settings.samples > 1:
        summary |= _of_samples([rows for rows in scored.values() if len(rows) == settings.samples], settings.samples)
    if settings.rounds:
        summary["rounds"] = _of_rounds(list(scored.values()), settings.rounds)
    firsts = [(questions[id].question, rows[0].verdict) for id, rows in scored.items()]
    return summary | {
        "official": benchmark.summarize(firsts) if firsts else {},
        "tokens": tokens_of(had),
        "seconds": {"an_answer": round(float(np.mean([a.seconds for a in every])), 3) if every else 0.0,
                    "clock": round(_clock(run), 1)},
        "sessions": [asdict(session) for session in run.sessions],
    }  # fmt: skip


def figure(values: Sequence[float]) -> dict | None:
    """A mean with its intervals; None of no values."""
    if len(values) == 0:
        return None
    found = {"value": rounded(np.mean(values)), "n": len(values), "interval": rounded_pair(bootstrap_interval(values))}
    if set(map(float, values)) <= {0.0, 1.0}:
        found["wilson"] = rounded_pair(wilson(sum(values), len(values)))
    return found


def how(run: Run) -> str:
    """The way answers were had, in a few words."""
    if run.how:
        return run.how
    settings = run.settings
    rounds = ",".join(map(str, settings.rounds))
    one = f"PaCoRe {rounds}" if rounds else "single answer"
    drawn = "greedy" if settings.sampling["temperature"] == 0 else f"temperature {settings.sampling['temperature']:g}"
    many = f", {settings.samples} samples" if settings.samples > 1 else ""
    return f"{one}, {drawn}{many}" + (", without pictures" if settings.blind else "")


def is_blind(asked: Asked, run: Run) -> bool:
    """Whether the question has pictures that the model was not shown with it."""
    return run.settings.blind and asked.question.has_pictures


def mean_of(rows: Sequence[Answer], zero: bool = False) -> float:
    """Of the scores; of failed ones too, as 0, where `zero`."""
    return float(np.mean([0.0 if zero and row.error else row.score for row in rows]))


def _groups(run: Run, had: dict[str, list[Answer]]) -> dict[str, dict[str, dict]]:
    """Figures by each group of the questions, in the order in which they first appear."""
    values: dict[str, dict[str, list[float]]] = {}
    for asked in run.questions:
        if asked.id in had:
            for name, group in asked.groups.items():
                values.setdefault(name, {}).setdefault(group, []).append(mean_of(had[asked.id]))
    return {name: {group: figure(own) for group, own in groups.items()} for name, groups in values.items()}


def _of_samples(whole: list[list[Answer]], samples: int) -> dict:
    """pass@k and majority@k over the questions that have all their samples, for k = 1, 2, 4 … and all."""
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples}) if whole else []
    scores = np.array([[row.score for row in rows] for rows in whole])
    return {
        "pass_at": {str(k): figure(pass_at(scores, k)) for k in ks},
        "majority_at": {str(k): figure([majority_of(rows, k) for rows in whole]) for k in ks},
    }


def _of_rounds(had: list[list[Answer]], widths: Sequence[int]) -> list[dict]:
    """What the trajectories of each round before the last said by themselves and by vote; see `evaluation.rounds`."""
    return [
        {
            "width": width,
            **{name: figure(values[name]) for name in ("score", "majority", "best")},
            **{name: round(float(np.mean(values[name] or [0.0])), 1) for name in ("trajectories", "tokens")},
        }
        for width, values in zip(widths, of_rounds(had, len(widths)), strict=True)
    ]


def majority_of(rows: Sequence[Answer], k: int) -> float:
    return majority_at([row.parsed for row in rows], [row.score for row in rows], k)


def tokens_of(had: dict[str, list[Answer]]) -> dict:
    """Prompt and completion tokens, in all and of a question with its samples."""
    every = all_of(had)
    prompt, completion = (sum(getattr(a, name) for a in every) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "prompt": prompt,
        "completion": completion,
        "a_question": round((prompt + completion) / max(1, len(had)), 1),
    }


def _clock(run: Run) -> float:
    """Seconds in which processes were at work; of one that was killed, until its last answer."""
    last = max((answer.at for answer in run.answers), default=0.0)
    return sum((s.finished if s.finished is not None else max(last, s.started)) - s.started for s in run.sessions)


def rounded(value: float) -> float:
    return round(float(value), 6)


def rounded_pair(interval: tuple[float, float]) -> list[float]:
    return [rounded(end) for end in interval]


def answered(run: Run) -> dict[str, list[Answer]]:
    """By question, the answers that have not failed."""
    rows = {id: [a for a in answers if not a.error] for id, answers in run.by_question().items()}
    return {id: answers for id, answers in rows.items() if answers}


def judged(had: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
    """Of these answers, those to questions whose own answers are published; a question's samples have scores or not."""
    return {id: rows for id, rows in had.items() if rows[0].score is not None}


def all_of(had: dict[str, list[Answer]]) -> list[Answer]:
    return [answer for rows in had.values() for answer in rows]
