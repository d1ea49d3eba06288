"""MMMU: questions of college exams with pictures, in thirty subjects; several options, or an open answer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder
from evaluation.interleaved import interleaved, lettered, options_of, text_of
from evaluation.picture_rows import picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.choices import mmmu_choice
from evaluation.scoring.mmmu_subjects import DOMAIN_OF, accuracy_table, subject_of
from evaluation.scoring.open_answers import is_right, predictions

# As the official run builds them; every option of `options` is a line "(A) text".
MULTIPLE_CHOICE = (
    "{{ question }}\n{{ options }}\n\nAnswer with the option's letter from the given choices directly."
)  # fmt: skip
OPEN = "{{ question }}\nAnswer the question using a single word or phrase."

LAYOUT = (
    "the Parquet files of the hub, <Subject>/validation-*.parquet, or flat, with `id`, `question`, `options`, "
    "`answer`, `question_type` and `image_1` to `image_7`"
)
_PUBLISHED = {"val": "validation", "dev": "dev", "test": "test"}
_PICTURES = range(1, 8)
_PARSED_SHOWN = 300  # characters


class Mmmu:
    """The official rule, which draws an option at random where a response names none: here from the question's id."""

    name = "mmmu"
    title = "MMMU"
    version = "1"
    splits = ("val", "dev", "test")
    source = "MMMU/MMMU"
    layout = LAYOUT

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the fields `question` and `options`, which is "" for an open question.

        The answers of `test` are not published, so it is not scored: see `submission`.
        """
        if split not in self.splits:
            raise BenchmarkError(f"MMMU has no split {split!r}; it has {', '.join(self.splits)}.")
        published = _PUBLISHED[split]
        folder = data_folder(location, self.source, LAYOUT, [f"*{published}*.parquet"])
        templates = {kind: prompt_from(prompt if prompt is not None else own, ["question", "options"])
                     for kind, own in (("multiple-choice", MULTIPLE_CHOICE), ("open", OPEN))}  # fmt: skip
        return [_question(row, folder, templates, split) for row in _rows(folder, published)]

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`; without a score where the answer is not published."""
        truth, accepted = question.truth, question.truth.get("answer")
        accepted = [accepted] if isinstance(accepted, str) else accepted
        if truth["type"] == "multiple-choice":
            choice = mmmu_choice(response, truth["options"], Random(question.id))
            note = "the response names no option, so one was drawn at random" if choice.guessed else ""
            right = None if accepted is None else float(choice.letter in accepted)
            return Verdict(right, choice.letter, choice.guessed, note=note)
        said = predictions(response)
        shown = "; ".join(map(str, said))
        return Verdict(None if accepted is None else float(is_right(said, accepted)), shown[:_PARSED_SHOWN])

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The official accuracies to three decimals: `Overall`, of each domain, "Overall-Business", of each subject."""
        return accuracies(scored)

    def submission(self, answered: Sequence[tuple[Question, str]]) -> dict[str, str]:
        """What the test's server takes: by id the chosen letter, drawn ones too, or an open question's response."""
        return {question.id: self.score(question, response).parsed
                if question.truth["type"] == "multiple-choice" else response.strip()
                for question, response in answered}  # fmt: skip


def accuracies(scored: Sequence[tuple[Question, Verdict]]) -> dict[str, float]:
    """The official table's accuracies by its names, of the domains and subjects that have questions."""
    table = accuracy_table((question.groups["subject"], verdict.score) for question, verdict in scored)
    overall = {name: row["acc"] for name, row in table.items() if row["num"]}
    return dict(sorted(overall.items(), key=lambda item: (item[0] != "Overall", not item[0].startswith("Overall-"))))


def groups_of(id: str, row: Mapping) -> dict[str, str]:
    """The groups that MMMU and MMMU-Pro have in common. Raises ValueError for an id without a subject."""
    subject = subject_of(id) or text_of(row.get("subject"))
    if subject not in DOMAIN_OF:
        raise ValueError(f"its subject {subject!r} is none of MMMU's")
    difficulty = text_of(row.get("topic_difficulty"))
    return {"subject": subject, "domain": DOMAIN_OF[subject]} | ({"difficulty": difficulty} if difficulty else {})


def pictures_of(row: Mapping, folder: Path) -> dict[int, str]:
    """The pictures of `image_1` to `image_7` by their numbers. Raises ValueError for what is none."""
    cells = {number: row.get(f"image_{number}") for number in _PICTURES}
    return {number: picture_address(cell, folder) for number, cell in cells.items() if cell is not None}


def _rows(folder: Path, published: str) -> Iterator[dict]:
    """Subject after subject, so that no more than one subject's pictures are in memory twice."""
    subjects = [s for s in sorted(DOMAIN_OF) if any(folder.rglob(f"{s}/*{published}*.parquet"))]
    for names in [f"{subject}/*{published}*" for subject in subjects] or [f"*{published}*"]:
        yield from picture_rows(folder, LAYOUT, [names])


def _question(row: dict, folder: Path, templates: Mapping, split: str) -> Question:
    id = text_of(row.get("id"))
    try:
        groups = groups_of(id, row)
        kind = "multiple-choice" if text_of(row.get("question_type")) == "multiple-choice" else "open"
        options = lettered(options_of(row.get("options"))) if kind == "multiple-choice" else {}
        said = text_of(row.get("question"))
        if not said or (kind == "multiple-choice" and not options):
            raise ValueError("it has no question or no options")
        answer = _answer(text_of(row.get("answer")), kind, options, split)
        pictures = pictures_of(row, folder)
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"{str(folder)!r}, question {id!r}: {error}; it must hold {LAYOUT}.") from None
    listed = "\n".join(f"({letter}) {option}" for letter, option in options.items())
    content = interleaved(templates[kind](question=said, options=listed), pictures)
    truth = {"type": kind} | ({"answer": answer} if answer is not None else {}) | {"options": options}
    return Question(id, [{"role": "user", "content": content}], truth, groups | {"question type": kind})


def _answer(cell: str, kind: str, options: Mapping[str, str], split: str) -> str | list[str] | None:
    """The accepted answer, or several; None where they are not published, as "?" in `test`. Raises ValueError."""
    if cell in ("", "?") and split == "test":
        return None
    if kind == "multiple-choice":
        if cell not in options:
            raise ValueError(f"its answer is {cell!r}, none of its {len(options)} options' letters")
        return cell
    # An open question that accepts several has them in a list, as Python writes it.
    answers = options_of(cell) if cell.startswith("[") and cell.endswith("]") else [cell]
    if not answers or not all(map(str.strip, answers)):
        raise ValueError("it has no answer")
    return answers[0] if len(answers) == 1 else answers


BENCHMARK = Mmmu()
