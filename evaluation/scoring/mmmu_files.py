"""MMMU's official figures of outputs as they are published, held against its file of answers."""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from evaluation.benchmark import BenchmarkError
from evaluation.scoring.choices import Choice, mmmu_choice
from evaluation.scoring.mmmu_subjects import DOMAIN_OF, accuracy_table, subject_of
from evaluation.scoring.open_answers import is_right, predictions

LAYOUT = (
    "a folder with <Subject>.json or <Subject>/output.json, lists of {id, response, all_choices, index2ans}; or one "
    "file {id: answer}"
)
KEY_LAYOUT = "{id: {question_type, ground_truth}}, such as answer_dict_val.json"
MULTIPLE_CHOICE = "multiple-choice"
_SEED = 42  # of the official program, which draws from one generator all through the subjects


@dataclass(frozen=True)
class _Judged:
    id: str
    subject: str
    parsed: str | list[str | float]  # of an open answer; what JSON has no number for is text
    right: bool
    guessed: bool = False


def score_mmmu(outputs: str | Path, key: str | Path) -> dict:
    """The official table, its rows at the top, and what stands beside it.

    Where a response names no option the official program draws one; the same seed in the same order gives the same
    draws, if it was run on all of these subjects at once. As there, the accuracies are of the questions that have an
    output: `missing` counts those of the key that have none.

    Args:
        outputs: see `LAYOUT`. In the single file multiple-choice answers are letters, and are not parsed.
        key: see `KEY_LAYOUT`; its answers count, also where an output holds another.

    Returns:
        The rows of `accuracy_table`, and `overall_correct` of `n` questions; `guessed`: how many answers were drawn;
        `strict`: the table, and `overall_correct`, with drawn answers wrong; `missing`; `notes` for a reader;
        `samples`: by id `parsed`, `correct` and `guessed`.

    Raises:
        BenchmarkError: a file that is not there or not in its layout, or a question that the key does not have.
    """
    truths = _key(Path(key))
    draw, judged = Random(_SEED), {}
    for row in _rows(Path(outputs)):
        one = _judge(row, truths, draw)
        if one.id in judged:
            raise BenchmarkError(f"{str(outputs)!r} answers {one.id!r} twice; give one model's outputs.")
        judged[one.id] = one
    every = list(judged.values())
    strict = [(one.subject, float(one.right and not one.guessed)) for one in every]
    guessed, missing = sum(one.guessed for one in every), len(truths.keys() - judged.keys())
    return accuracy_table((one.subject, float(one.right)) for one in every) | {
        "overall_correct": sum(one.right for one in every),
        "n": len(every),
        "guessed": guessed,
        "strict": accuracy_table(strict) | {"overall_correct": int(sum(score for _, score in strict))},
        "missing": missing,
        "notes": _notes(every, guessed, missing),
        "samples": {
            one.id: {"parsed": one.parsed, "correct": one.right, "guessed": one.guessed} for one in every
        },
    }  # fmt: skip


def _notes(every: list[_Judged], guessed: int, missing: int) -> list[str]:
    notes = []
    if guessed:
        right = sum(one.right and not one.guessed for one in every)
        notes.append(f"{guessed} responses name no option, and one was drawn; without these {right} are right.")
    if missing:
        notes.append(f"{missing} questions of the key have no output; they are in no figure.")
    return notes


def _judge(row: dict[str, Any], truths: dict[str, tuple[str, list[str]]], draw: Random) -> _Judged:
    id, response = row.get("id"), row.get("response")
    if not isinstance(id, str) or id not in truths:
        raise BenchmarkError(f"an output is of the question {id!r}, which the key does not have; give the key of it.")
    if not isinstance(response, str):
        raise BenchmarkError(f"the response to {id!r} is {str(response)[:40]!r}, no text; answer the question again.")
    kind, accepted = truths[id]
    subject = subject_of(id)
    if kind != MULTIPLE_CHOICE:
        said = predictions(response)
        shown = [str(value) if isinstance(value, float) and not isfinite(value) else value for value in said]
        return _Judged(id, subject, shown, is_right(said, accepted))
    choice = Choice(response) if row.get("parsed") else mmmu_choice(response, _options(row), draw)
    return _Judged(id, subject, choice.letter, choice.letter in accepted, choice.guessed)


def _options(row: dict[str, Any]) -> dict[str, str]:
    letters, texts = row.get("all_choices"), row.get("index2ans")
    if not (isinstance(letters, list) and isinstance(texts, dict) and set(map(str, letters)) <= texts.keys()):
        raise BenchmarkError(f"the output of {row['id']!r} has no options; it must hold `all_choices` and `index2ans`.")
    return {str(letter): str(texts[str(letter)]) for letter in letters}


def _rows(outputs: Path) -> list[dict[str, Any]]:
    """Subject by subject in their official order, which is the alphabet's; each in its file's own."""
    if outputs.is_file():
        answers = _read(outputs, LAYOUT)
        if not isinstance(answers, dict):
            raise BenchmarkError(f"{str(outputs)!r} is no {{id: answer}}; give {LAYOUT}.")
        return [{"id": id, "response": answer, "parsed": True} for id, answer in answers.items()]
    rows = []
    for subject in sorted(DOMAIN_OF):
        for path in (outputs / f"{subject}.json", outputs / subject / "output.json"):
            if not path.is_file():
                continue
            own = _read(path, LAYOUT)
            if not isinstance(own, list) or not all(isinstance(row, dict) for row in own):
                raise BenchmarkError(f"{str(path)!r} is no list of outputs; give {LAYOUT}.")
            rows += [row | {"parsed": False} for row in own]
    if not rows:
        raise BenchmarkError(f"{str(outputs)!r} has no outputs; give {LAYOUT}.")
    return rows


def _key(path: Path) -> dict[str, tuple[str, list[str]]]:
    """By id: the type of the question, and its accepted answers."""
    key = _read(path, KEY_LAYOUT)
    if not isinstance(key, dict) or not key:
        raise BenchmarkError(f"{str(path)!r} is no key; it must hold {KEY_LAYOUT}.")
    truths = {}
    for id, entry in key.items():
        truth = entry.get("ground_truth") if isinstance(entry, dict) else None
        accepted = [truth] if isinstance(truth, str) else truth
        if subject_of(id) is None or not isinstance(accepted, list) or not all(isinstance(t, str) for t in accepted):
            raise BenchmarkError(f"{str(path)!r}, {id!r}: no subject of MMMU or no `ground_truth`; give {KEY_LAYOUT}.")
        truths[id] = (str(entry.get("question_type")), accepted)
    return truths


def _read(path: Path, layout: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{str(path)!r} cannot be read ({reason}); give {layout}.") from None
