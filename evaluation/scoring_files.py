"""Outputs as others publish them, scored by the official rules: `python -m evaluation score`."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from evaluation import tables
from evaluation.benchmark import BenchmarkError
from evaluation.scoring.mathvision_files import score_mathvision
from evaluation.scoring.mmmu_files import score_mmmu

# Each is a function of (outputs, key): the official figures under their official keys, and what stands beside them.
SCORERS: dict[str, Callable[..., dict]] = {"mathvision": score_mathvision, "mmmu": score_mmmu}
WITH_MODERN = ("mathvision",)

# Figures of a subject on a level; there are hundreds.
_CROSSED = re.compile(r"_level[^_]*|-level[^_]*_.*")


@dataclass
class Score:
    """Score outputs that are there already, by the official rules: `score mathvision FILE --key test.jsonl`.

    Answers are read anew from every response; nothing that the file says about them counts.
    """

    benchmark: tyro.conf.Positional[str]
    """mathvision, or mmmu."""
    outputs: tyro.conf.Positional[Path]
    """For mathvision a JSONL file whose rows have `id` and `response`; for mmmu a folder of subjects, or a file."""
    key: Path
    """The published answers: mathvision's test.jsonl, mmmu's answer_dict_val.json."""
    modern: bool = False
    """Ask math-verify too, beside the official rule; for mathvision."""
    json: bool = False
    """End with one JSON line: the official keys, and every sample's verdict."""


def score(options: Score) -> int:
    """Prints the figures; raises BenchmarkError."""
    scores = score_files(options.benchmark, options.outputs, options.key, options.modern)
    tables.show(*of_scores(options.benchmark, scores), markdown=False)
    if options.json:
        print(json.dumps(scores))
    return 0


def score_files(benchmark: str, outputs: str | Path, key: str | Path, modern: bool = False) -> dict:
    """The official figures, and what stands beside them.

    Raises:
        BenchmarkError: no such scorer, or files that it cannot take.
    """
    if benchmark not in SCORERS:
        raise BenchmarkError(f"there is no scorer for files of {benchmark!r}; there are {', '.join(sorted(SCORERS))}.")
    if modern and benchmark not in WITH_MODERN:
        raise BenchmarkError(f"math-verify does not read answers to {benchmark}; leave out --modern.")
    return SCORERS[benchmark](outputs, key, modern=True) if modern else SCORERS[benchmark](outputs, key)


def of_scores(benchmark: str, scores: dict) -> tuple[list[tables.Section], list[str]]:
    """A table of what `score_files` returned, and what has to be said about it."""
    own, crossed = [], 0
    for name, value in scores.items():
        if isinstance(value, dict) and {"num", "acc"} <= value.keys():
            own.append((name, f"{value['acc']} of {value['num']}"))
        elif isinstance(value, str | int | float):
            crossed += (is_crossed := _CROSSED.search(name) is not None)
            own += [] if is_crossed else [(name, str(value))]
    notes = list(scores.get("notes", ()))
    if crossed:
        notes.append(f"{crossed} more figures, of each subject on each level, are in --json.")
    return [tables.Section(f"{benchmark}, official figures", ("", "value"), own)], notes
