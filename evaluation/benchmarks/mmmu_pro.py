"""MMMU-Pro: MMMU's harder questions with up to ten options, or with question and options inside the picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.benchmarks.mmmu import accuracies, groups_of, pictures_of
from evaluation.competitions import percent_right
from evaluation.data import data_folder
from evaluation.interleaved import interleaved, lettered, options_of, text_of
from evaluation.picture_rows import picture_address, picture_rows
from evaluation.prompts import prompt_from
from evaluation.scoring.choices import mmmu_pro_choice

# The official `direct` prompts. Every option of `options` is a line "A. text".
PROMPTS = {
    "standard": "{{ question }}\n{{ options }}\nAnswer with the option letter from the given choices directly.",
    "vision": (
        "{{ question }}\nAnswer with the option letter from the given choices directly. The last line of your response "
        "should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
    ),
}
LAYOUT = (
    "the Parquet files of the hub, in 'standard (10 options)/' with `id`, `question`, `options`, `answer` and "
    "`image_1` to `image_7`, and in 'vision/' with `id`, `image`, `options` and `answer`"
)
_FILES = {
    "standard": ("standard (10 options)/*", "*10*options*", "standard/*"),
    "vision": ("vision/*", "*vision*"),
}


class MmmuPro:
    """The official rule of MMMU-Pro, which is not MMMU's; where it draws at random, here from the question's id.

    The prompts are those of the official `direct` mode. For its other mode, `cot`, give a prompt file whose
    instruction asks for reasoning first.
    """

    name = "mmmu-pro"
    title = "MMMU-Pro"
    version = "1"
    splits = ("standard", "vision")
    source = "MMMU/MMMU_Pro"
    layout = LAYOUT

    def load(self, location: str | Path | None, split: str, prompt: str | None = None) -> list[Question]:
        """See `Benchmark.load`; `prompt` has the fields `question` and `options`.

        In `vision` the question is the picture, with the options in it, and `options` is "".
        """
        if split not in self.splits:
            raise BenchmarkError(f"MMMU-Pro has no split {split!r}; it has {', '.join(self.splits)}.")
        folder = data_folder(location, self.source, LAYOUT, [f"{name}.parquet" for name in _FILES[split]])
        write = prompt_from(prompt if prompt is not None else PROMPTS[split], ["question", "options"])
        rows = picture_rows(folder, LAYOUT, _FILES[split])
        return [_question(row, folder, write, vision=split == "vision") for row in rows]

    def score(self, question: Question, response: str) -> Verdict:
        """See `Benchmark.score`."""
        choice = mmmu_pro_choice(response, question.truth["options"], Random(question.id))
        note = "the response names no option, so one was drawn at random" if choice.guessed else ""
        return Verdict(float(choice.letter == question.truth["answer"]), choice.letter, choice.guessed, note=note)

    def summarize(self, scored: Sequence[tuple[Question, Verdict]]) -> dict:
        """The official `accuracy`, in per cent, and MMMU's table of accuracies."""
        return {"accuracy": percent_right(scored), **accuracies(scored)}


def _question(row: dict, folder: Path, write: Callable[..., str], vision: bool) -> Question:
    id = text_of(row.get("id"))
    try:
        groups = groups_of(id, row)
        options = lettered(options_of(row.get("options")))
        answer = text_of(row.get("answer"))
        if answer not in options:
            raise ValueError(f"its answer is {answer!r}, none of its {len(options)} options' letters")
        if vision:
            pictures = {1: picture_address(row.get("image", row.get("image_1")), folder)}
            said, listed = "<image 1>", ""
        else:
            pictures = pictures_of(row, folder)
            said = text_of(row.get("question"))
            listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
        if not said:
            raise ValueError("it has no question")
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"{str(folder)!r}, question {id!r}: {error}; it must hold {LAYOUT}.") from None
    content = interleaved(write(question=said, options=listed), pictures)
    return Question(id, [{"role": "user", "content": content}], {"answer": answer, "options": options}, groups)


BENCHMARK = MmmuPro()
