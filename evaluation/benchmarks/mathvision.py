"""MathVision: 3,040 problems of competitions with pictures, in sixteen subjects and five levels (arXiv 2402.14804)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.data import data_folder
from evaluation.picture_rows import picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.latex_answers import LETTERS, read_answer
from evaluation.scoring.mathvision_files import Truth, accuracy_table

# As the official programs ask, which leave out options that only name parts of the picture.
PROMPT = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    'question, only one letter is allowed in the "\\boxed{}".\n{{ question }}\n{{ options }}'
)

LAYOUT = (
    "test.jsonl or testmini.jsonl beside images/, or the hub's Parquet files of these names, with `id`, `question`, "
    "`options`, `answer`, `level`, `subject`, and `image` or `decoded_image`"
)
_NAMED = re.compile(r"<image\d{1,2}>")
_PARSED_SHOWN = 300  # characters


class MathVision:
    """Right is what the official program takes for right, whose quirks `latex_answers` and `latex_value` name."""

    name = "mathvision"
    title = "MathVision"
    version = "1"
    splits = ("testmini", "test")
    source = "MathLLMs/MathVision"
    layout = LAYOUT

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`.

        Args:
            prompt: with the fields `question`, which names its pictures as "<image1>", and `options`, lines such as
                "(A) text"; "" where there are none, or where they are letters alone.
        """
        if split not in self.splits:
            raise BenchmarkError(f"MathVision has no split {split!r}; it has {', '.join(self.splits)}.")
        folder = data_folder(location, self.source, LAYOUT, [f"data/{split}-*.parquet", f"*{split}-*.parquet"])
        write = prompt_from(prompt if prompt is not None else PROMPT, ["question", "options"])
        return [_question(row, folder, write) for row in picture_rows(folder, LAYOUT, [f"{split}-*", split])]

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`."""
        truth = Truth(**question.truth)
        answer = read_answer(response)
        return Verdict(float(truth.holds(answer)), answer[:_PARSED_SHOWN], modern=truth.verified(response))

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The official keys and their "right/total=percent%"; see `accuracy_table`."""
        return accuracy_table((Truth(**question.truth), verdict.score == 1.0) for question, verdict in scored)


def _question(row: dict, folder: Path, write: Callable[..., str]) -> Question:
    id = str(row.get("id"))
    try:
        truth = Truth.of_row(row)
        said = row.get("question")
        if not isinstance(said, str) or not said.strip():
            raise ValueError("it has no `question`")
        picture = _picture(row, folder)
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"{str(folder)!r}, question {id!r}: {error}; it must hold {LAYOUT}.") from None
    listed = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, truth.options, strict=False))
    bare = "".join(truth.options) == LETTERS
    text = write(question=said.strip(), options="" if bare else listed)
    groups = {"subject": truth.subject, "level": truth.level}
    turn = {"role": "user", "content": _with_picture(text, picture)}
    return Question(id, [turn], asdict(truth), groups)


def _with_picture(text: str, picture: str) -> list[dict]:
    """The picture where the text names it.

    Where the text names several, the one that is published shows them all, each under its name: it comes first, and
    the names stay.
    """
    image = {"type": "image", "image": picture}
    named = _NAMED.findall(text)
    if len(named) != 1:
        return [image, {"type": "text", "text": text}]
    pieces = [{"type": "text", "text": piece} for piece in text.split(named[0])]
    return [part for part in (pieces[0], image, pieces[1]) if part is image or part["text"].strip()]


def _picture(row: dict, folder: Path) -> str:
    """A path, or a `data:` address. Raises ValueError or OSError."""
    inside, path = row.get("decoded_image"), row.get("image")
    if inside is not None:
        return picture_address(inside, folder)
    if not isinstance(path, str) or not path or not (folder / path).is_file():
        raise ValueError(f"its picture {str(path)[:80]!r} is not there")
    return str(folder / path)


BENCHMARK = MathVision()
