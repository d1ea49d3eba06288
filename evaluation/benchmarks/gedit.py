"""GEdit-Bench: 606 real requests in English and Chinese, eleven categories (Liu et al. 2025, arXiv 2504.17761).

A judge that sees gives each result two pairs of scores from 0 to 10 (VIEScore, Ku et al. 2024): whether the edit was
followed, and nothing else over-edited; whether the picture is natural, and free of artefacts. Of each pair the lower
counts: SC and PQ; overall is sqrt(SC x PQ). The questions are in our words, so figures compare with published ones in
kind, not to the digit; and where the official program draws a score at random for words it cannot read, ours is
"not judged". As there, a result is brought to its source's size before it is shown.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from PIL import Image

from evaluation.benchmark import BenchmarkError
from evaluation.data import data_folder
from evaluation.edit_benchmark import EditScores, EditTask
from evaluation.judging import Judge, Preference, prefer, read_scores
from evaluation.picture_rows import picture_address, picture_rows
from vlm.pictures import open_picture

CATEGORIES = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
LANGUAGES = ("en", "cn")

CONSISTENCY = """\
You judge edits of pictures. The second picture was made from the first by a program that was told: "{instruction}"
Give two whole numbers from 0 to 10. The first: was the instruction followed? 0 is not at all, 10 is perfectly; where \
both pictures look the same, the edit was not done. The second: was nothing else changed? 0 is another picture \
altogether, 10 is the least change that does what was asked.
Answer with JSON alone, such as {{"score": [7, 4], "reasoning": "why, in a sentence"}}."""

QUALITY = """\
You judge pictures that programs made. Give two whole numbers from 0 to 10 for this one. The first: does it look \
natural? 0 is not at all, for instance a wrong sense of distance, wrong shadows or wrong light; 10 is natural. The \
second: is it free of artefacts? 0 is full of distortions, watermarks, scratches, blurred faces, odd limbs or parts \
that do not belong together; 10 has none.
Answer with JSON alone, such as {"score": [7, 4], "reasoning": "why, in a sentence"}."""

BETTER = """\
Two programs edited the first picture; both were told: "{instruction}"
The second picture is the first program's result, the third picture the second program's. Which program did better \
what was asked, with nothing else changed and no flaws?
Answer with JSON alone: {{"better": "first"}}, {{"better": "second"}}, or {{"better": "same"}}."""


class GEdit:
    """See the module; keys of the figures as in the paper: G_SC, G_PQ, G_O."""

    name = "gedit"
    title = "GEdit-Bench"
    version = "1"
    splits = ("train",)
    source = "stepfun-ai/GEdit-Bench"
    layout = (
        "Parquet with `key`, `task_type`, `instruction`, `instruction_language`, `input_image`, `input_image_raw`, "
        "`Intersection_exist`"
    )
    needs_judge = True
    overall, highest = "O", 10.0
    shown = ("SC", "PQ", "O")

    def load(self, location: str | Path | None, split: str, size: int | None = None) -> list[EditTask]:
        """See `EditBenchmark.load`; the hub calls its only split `train`."""
        if split not in self.splits:
            raise BenchmarkError(f"GEdit-Bench has no split {split!r}; the hub calls its only one 'train'.")
        folder = data_folder(location, self.source, self.layout, ("data/*", "*.parquet"))
        tasks: dict[str, EditTask] = {}
        for number, row in enumerate(picture_rows(folder, self.layout, ("train-*", "*")), 1):
            try:
                task = _task(row, folder)
            except (OSError, ValueError) as error:
                raise BenchmarkError(f"{str(folder)!r}, row {number}: {error}; it must hold {self.layout}.") from None
            if task.name in tasks:
                raise BenchmarkError(f"{str(folder)!r}, row {number}: {task.name!r} is there twice.")
            tasks[task.name] = task
        return list(tasks.values())

    def score(self, task: EditTask, result: Image.Image, judge: Judge | None) -> EditScores:
        """See `EditBenchmark.score`: `SC`, `PQ`, `O`, and the four scores they come from."""
        before, after = _pair(task, result)
        asked = CONSISTENCY.format(instruction=task.instruction)
        (followed, kept), of_edit = judge.ask(_about([before, after], asked), _heard, f"{task.name}, consistency")
        (natural, clean), of_picture = judge.ask(_about([after], QUALITY), _heard, f"{task.name}, quality")
        consistency, quality = min(followed, kept), min(natural, clean)
        scores = {"SC": consistency, "PQ": quality, "O": math.sqrt(consistency * quality), "followed": followed,
                  "kept": kept, "natural": natural, "clean": clean}  # fmt: skip
        return EditScores(scores, {"consistency": of_edit, "quality": of_picture})

    def prefer(self, task: EditTask, ours: Image.Image, other: Image.Image, judge: Judge) -> Preference:
        """Which of two editors' results is better, asked in both orders. Raises BenchmarkError."""
        before, ours = _pair(task, ours)
        _, other = _pair(task, other)
        asked = BETTER.format(instruction=task.instruction)
        return prefer(judge, lambda a, b: _about([before, a, b], asked), ours, other, task.name)

    def summarize(self, scored: Sequence[tuple[EditTask, dict[str, float]]]) -> dict:
        """By language, for the full set and the intersection: means over categories of means over their pictures."""
        figures: dict = {}
        for language in LANGUAGES:
            own = [(task, scores) for task, scores in scored if task.groups["language"] == language]
            kept = [(task, scores) for task, scores in own if task.groups["intersection"] == "yes"]
            figures |= {language: {"fullset": _means(own), "intersection": _means(kept)}} if own else {}
        return figures

    def rows(self, figures: dict) -> list[tuple[str, ...]]:
        """See `EditBenchmark.rows`."""
        shown = [("", "G_SC", "G_PQ", "G_O", "pictures")]
        for language, subsets in figures.items():
            for subset, means in subsets.items():
                if means["n"]:
                    whole = "" if means["of_categories"] == len(CATEGORIES) else f", {means['of_categories']} of 11"
                    shown.append((f"{language}, {subset}{whole}", *(f"{means[key]:.3f}" for key in _PAPER.values()),
                                  str(means["n"])))  # fmt: skip
            shown += [(f"{language}, {name}", *(f"{own[key]:.3f}" for key in _PAPER), str(own["n"]))
                      for name, own in subsets["fullset"]["categories"].items()]  # fmt: skip
        return shown


_PAPER = {"SC": "G_SC", "PQ": "G_PQ", "O": "G_O"}


def _means(scored: Sequence[tuple[EditTask, dict[str, float]]]) -> dict:
    categories = {}
    for category in CATEGORIES:
        own = [scores for task, scores in scored if task.groups["category"] == category]
        if own:
            categories[category] = {"n": len(own)} | {key: round(mean(s[key] for s in own), 4) for key in _PAPER}
    # Of the means as they are, not as they are written.
    exact = {
        key: [mean(s[key] for t, s in scored if t.groups["category"] == category) for category in categories]
        for key in _PAPER
    }
    means = {name: round(mean(exact[key]), 4) if categories else None for key, name in _PAPER.items()}
    return {"n": len(scored), "of_categories": len(categories)} | means | {"categories": categories}


def _task(row: dict, folder: Path) -> EditTask:
    """Raises ValueError, which says what is wrong with the row."""
    key, category, language = (str(row.get(name) or "") for name in ("key", "task_type", "instruction_language"))
    if not re.fullmatch(r"\w[\w.-]{0,127}", key):  # it becomes a file's name
        raise ValueError(f"its `key` {key[:60]!r} is no name for a file")
    if category not in CATEGORIES:
        raise ValueError(f"its `task_type` {category[:60]!r} is none of the eleven")
    if language not in LANGUAGES:
        raise ValueError(f"its `instruction_language` is {language[:60]!r}; it must be en or cn")
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise ValueError("no `instruction`")
    source = picture_address(row.get("input_image"), folder)
    raw = row.get("input_image_raw")  # what the official example edits
    groups = {
        "category": category,
        "language": language,
        "intersection": "yes" if row.get("Intersection_exist") else "no",
    }
    return EditTask(f"fullset/{category}/{language}/{key}", row["instruction"].strip(),
                    picture_address(raw, folder) if raw else source, groups, source)  # fmt: skip


def _heard(words: str) -> tuple[tuple[float, float], str]:
    """The verdict and the words that it was read from. Raises ValueError."""
    return read_scores(words), words


def _pair(task: EditTask, result: Image.Image) -> tuple[Image.Image, Image.Image]:
    before = open_picture(task.source)
    return before, result if result.size == before.size else result.resize(before.size, Image.Resampling.BICUBIC)


def _about(pictures: Sequence[Image.Image], text: str) -> list[dict]:
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


BENCHMARK = GEdit()
