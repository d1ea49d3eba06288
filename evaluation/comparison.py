"""Two runs on the same questions: whether they differ, and where."""

from evaluation.rounds import majority_of_round
from evaluation.runs import Answer, Run, RunError, texts_of
from evaluation.statistics import paired
from evaluation.summary import answered, how, judged, majority_of, mean_of, rounded, rounded_pair, tokens_of


def compare(before: Run, after: Run) -> dict:
    """Two runs on the questions that both have answers to: a paired test, and the flips.

    `pairs` compares the scores, and where a run has several samples its majority too, with the other's answers; where
    none has, but one has rounds, the majority of its round before the answer. `figures` says which of each run, `flips`
    which questions have a higher and a lower score after, and the rest is that of `Paired`.

    Raises:
        RunError: of different questions, or with none in common.
    """
    for name in ("benchmark", "split"):
        a, b = getattr(before.settings, name), getattr(after.settings, name)
        if a != b:
            raise RunError(f"the runs have different questions: {name} is {a!r} before and {b!r} after.")
    had = [judged(answered(run)) for run in (before, after)]
    common = [id for id in had[0] if id in had[1]]
    if not common:
        raise RunError("the runs have no question in common that both have a score of.")
    notes = []
    if before.settings.version != after.settings.version:
        notes.append("the benchmark's loader, prompt or scorer has changed between the runs")
    asked = [_words(run) for run in (before, after)]
    if changed := sum(asked[0][id] != asked[1][id] for id in common):
        notes.append(f"{changed} of {len(common)} questions were asked in other words")
    kinds = [("score", "score")]
    several = [run.settings.samples > 1 for run in (before, after)]
    if any(several):
        kinds.append(tuple("majority" if many else "score" for many in several))
    elif any(run.settings.rounds for run in (before, after)):
        kinds.append(tuple("round's majority" if run.settings.rounds else "score" for run in (before, after)))
    return {
        "benchmark": before.settings.benchmark,
        "split": before.settings.split,
        "before": {"model": before.settings.model, "how": how(before), "tokens": tokens_of(had[0])},
        "after": {"model": after.settings.model, "how": how(after), "tokens": tokens_of(had[1])},
        "in_one_only": [len(had[0]) - len(common), len(had[1]) - len(common)],
        "notes": notes,
        "pairs": [pair for kind in kinds if (pair := _pair_of(kind, had, common))],
    }


def _words(run: Run) -> dict[str, list]:
    return {asked.id: texts_of(asked.conversation) for asked in run.questions}


def _pair_of(kinds: tuple[str, str], had: list[dict[str, list[Answer]]], common: list[str]) -> dict | None:
    """None where no question has both figures: the trajectories of older runs were not judged."""
    figures = {id: [_FIGURES[kind](rows[id]) for kind, rows in zip(kinds, had, strict=True)] for id in common}
    common = [id for id in common if None not in figures[id]]
    if not common:
        return None
    a, b = ([figures[id][side] for id in common] for side in (0, 1))
    found = paired(a, b)
    flips = {
        "won": [id for id, x, y in zip(common, a, b, strict=True) if y > x],
        "lost": [id for id, x, y in zip(common, a, b, strict=True) if y < x],
    }
    return {
        "figures": list(kinds),
        "n": found.n,
        "before": rounded(found.before),
        "after": rounded(found.after),
        "difference": rounded(found.difference),
        "interval": rounded_pair(found.interval),
        "p": found.p,
        "test": found.test,
        "won": found.won,
        "lost": found.lost,
        "flips": flips,
    }


_FIGURES = {
    "score": mean_of,
    "majority": lambda rows: majority_of(rows, len(rows)),
    # Of the last round before the answer, or of the only one that the budget allowed.
    "round's majority": lambda rows: majority_of_round(rows, max(0, max(len(row.rounds) for row in rows) - 2)),
}
