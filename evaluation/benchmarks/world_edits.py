"""Edits of our own world, ImgEdit-style: what was asked is known to the pixel, so that no judge is needed.

Success is change and preservation above their thresholds, see `training.edit_verifier`, as `training report` counts it.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from PIL import Image

from evaluation.benchmark import BenchmarkError
from evaluation.edit_benchmark import EditScores, EditTask
from evaluation.judging import Judge
from training.intervals import mean_of, wilson
from training.world.edits import EDIT_FAMILIES, draw_edit
from training.world.rendering import SIDE

PER_FAMILY = 50


class WorldEdits:
    """The families of `training.world.edits`, seeds from 0, in English and Chinese as they are drawn."""

    name = "world-edits"
    title = "World edits"
    version = "1"
    splits = ("test", "held_out", "hard")
    source = "drawn"
    layout = f"nothing to fetch: the edits are drawn; a number is so many a family ({PER_FAMILY})"
    needs_judge = False
    overall, highest = "success", 1.0
    shown = ("change", "preservation")

    def load(self, location: str | Path | None, split: str, size: int | None = None) -> list[EditTask]:
        """See `EditBenchmark.load`; `location` is the number of edits a family."""
        if split not in self.splits:
            raise BenchmarkError(f"the world has no split {split!r} to be judged on; there are {list(self.splits)}.")
        count = str(PER_FAMILY if location is None else location)
        if not count.isdecimal() or not 1 <= int(count) <= 100_000:
            raise BenchmarkError(f"the world is drawn, not read from {count!r}; give the number of edits a family.")
        edits = [draw_edit(seed, split, family, size=size or SIDE)
                 for seed in range(int(count)) for family in EDIT_FAMILIES]  # fmt: skip
        return [EditTask(f"{split}/{e.family}/{e.seed}", e.instruction, e.before,
                         {"family": e.family, "language": e.language}, truth=e) for e in edits]  # fmt: skip

    def score(self, task: EditTask, result: Image.Image, judge: Judge | None) -> EditScores:
        """See `EditBenchmark.score`: `change`, `preservation`, and `success`, which is 0 or 1."""
        try:
            found = task.truth.verifier(result)
        except ValueError as error:
            raise BenchmarkError(f"{task.name}: {error}") from None
        scores = {"change": found.change, "preservation": found.preservation, "success": float(found.success)}
        return EditScores(scores)

    def summarize(self, scored: Sequence[tuple[EditTask, dict[str, float]]]) -> dict:
        """`families`, and the unweighted `mean` of their successes with `mean_interval`; by language likewise."""
        families = {family: figures for family in EDIT_FAMILIES if (figures := _figures(scored, "family", family))}
        languages = {name: figures for name in ("en", "zh") if (figures := _figures(scored, "language", name))}
        rates = {name: {"accuracy": figures["success"], "n": figures["n"]} for name, figures in families.items()}
        overall, interval = mean_of(rates) if rates else (None, None)
        return {"families": families, "languages": languages, "mean": overall, "mean_interval": interval}

    def rows(self, figures: dict) -> list[tuple[str, ...]]:
        """See `EditBenchmark.rows`."""
        shown = [("", "success [95 %]", "change", "preservation", "edits")]
        for name, own in (figures["families"] | figures["languages"]).items():
            low, high = own["interval"]
            shown.append((name, f"{own['success']:.1%} [{low:.1%}, {high:.1%}]", f"{own['change']:.2f}",
                          f"{own['preservation']:.2f}", str(own["n"])))  # fmt: skip
        if figures["mean"] is not None:
            low, high = figures["mean_interval"]
            shown.append(("mean of the families", f"{figures['mean']:.1%} [{low:.1%}, {high:.1%}]", "", "", ""))
        return shown


def _figures(scored: Sequence[tuple[EditTask, dict[str, float]]], group: str, name: str) -> dict:
    own = [scores for task, scores in scored if task.groups[group] == name]
    if not own:
        return {}
    done = sum(scores["success"] for scores in own)
    return {"success": round(done / len(own), 4), "n": len(own),
            "interval": [round(end, 4) for end in wilson(done, len(own))],
            "change": round(mean(s["change"] for s in own), 4),
            "preservation": round(mean(s["preservation"] for s in own), 4)}  # fmt: skip


BENCHMARK = WorldEdits()
