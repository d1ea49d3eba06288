"""`python -m evaluation edits` and `judge`: an editor paints a benchmark's tasks; its pictures are scored."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evaluation import tables
from evaluation.benchmark import BenchmarkError
from evaluation.benchmarks import edit_benchmark_named
from evaluation.edit_benchmark import EditBenchmark, EditTask
from evaluation.edit_runs import (
    Painting,
    check_folder,
    digest_of,
    editor_digest,
    held,
    judged,
    make_folder,
    painting_of,
    result_of,
    write_scores,
)
from evaluation.judging import Judge, JudgeOptions
from evaluation.runs import RunError
from vlm.pictures import open_picture


@dataclass
class Edits:
    """Let an editor paint a benchmark's edits: `python -m evaluation edits world-edits --model EDITOR`, then `judge`.

    A folder keeps the pictures in the official layout; killed at any point, it goes on with --resume.
    """

    benchmark: tyro.conf.Positional[str]
    """gedit or world-edits."""
    model: str = "mini"
    """mini, the editor shipped with the repository, or the folder of a saved one."""
    split: str | None = None
    """Of the benchmark; by default its first one."""
    data: str | None = None
    """A folder in the published layout, or a hub id, in place of the benchmark's; for world-edits, edits a family."""
    limit: int | None = None
    """The first so many edits alone; more may follow with --resume."""
    steps: int | None = None
    """Of sampling; the editor's own number by default."""
    guidance: float | None = None
    """The editor's own by default."""
    seed: int = 0
    """Of the run: every picture's own follows from it."""
    batch: int = 4
    """Pictures that are painted at once."""
    out: Path | None = None
    """The folder of pictures; by default one in runs/evaluation/, named after what is painted."""
    resume: bool = False
    """Go on with a folder that is there."""


@dataclass
class JudgeEdits:
    """Score a folder of pictures in the official layout, whoever painted it: `python -m evaluation judge gedit FOLDER`.

    What the judge says is kept in the folder: judging again is free, and `report --html` shows every picture with it.
    """

    benchmark: tyro.conf.Positional[str]
    """gedit or world-edits."""
    folder: tyro.conf.Positional[Path]
    """Where `edits` painted, or with FOLDER/fullset/CATEGORY/LANGUAGE/KEY.png."""
    judge: tyro.conf.OmitArgPrefixes[JudgeOptions] = field(default_factory=JudgeOptions)
    against: Path | None = None
    """Another such folder: which is better, each pair shown in both orders, in place of scores (gedit)."""
    split: str | None = None
    """By default the one that was painted."""
    data: str | None = None
    """By default what was painted."""
    json: bool = False
    """End with one JSON line: the figures."""


def edits(options: Edits) -> int:
    """Returns 1 where pictures could not be painted. Raises RunError or BenchmarkError."""
    benchmark = edit_benchmark_named(options.benchmark)
    split = options.split or benchmark.splits[0]
    for name, value in (("limit", options.limit), ("batch", options.batch), ("steps", options.steps)):
        if value is not None and value < 1:
            raise RunError(f"--{name} is {value}; it must be at least 1.")
    # Torch takes seconds to load, which no other command of this module needs.
    from edit.loading import load_editor, locate_editor
    from edit.pipeline import SIZE_LEVELS
    from evaluation.edit_painting import paint
    from vlm.answering import ModelError

    try:
        editor = locate_editor(options.model)
        name = options.model if options.model == "mini" else editor.resolve().name
        out = options.out or Path("runs/evaluation") / re.sub(r"[^\w.,-]+", "_", f"{benchmark.name}-{split}-{name}")
        config = json.loads((editor / "model_index.json").read_text(encoding="utf-8"))
        size = max(config.get("size_levels") or SIZE_LEVELS)
        tasks = benchmark.load(options.data, split, size)
        painting = Painting(
            benchmark.name, benchmark.version, split, options.data, digest_of(tasks), name, editor_digest(editor),
            options.steps, options.guidance, options.seed, size,
        )  # fmt: skip
        check_folder(out, painting, options.resume)
        pipeline = load_editor(options.model)
    except ModelError as error:
        raise RunError(str(error)) from error
    pipeline.set_progress_bar_config(disable=True)
    make_folder(out, painting)
    with held(out):
        chosen = tasks[: options.limit]
        there = sum(result_of(out, task).is_file() for task in chosen)
        with _Bar("painting", len(chosen), there) as on_done:
            failed = paint(pipeline, chosen, out, painting, options.batch, on_done)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} pictures are in {out}")
    return 1 if failed else 0


def judge_edits(options: JudgeEdits) -> int:
    """Returns 1 where results could not be judged. Raises RunError, BenchmarkError or BackendError."""
    benchmark = edit_benchmark_named(options.benchmark)
    if not options.folder.is_dir():
        raise RunError(f"there is no folder {str(options.folder)!r}; give one of pictures.")
    if options.against is not None and not hasattr(benchmark, "prefer"):
        raise RunError(f"{benchmark.name} is scored without a judge, who alone could prefer; leave out --against.")
    if benchmark.needs_judge and options.judge.judge_url is None:
        raise RunError(f"{benchmark.name} is scored by a judge; name its server with --judge-url.")
    made = painting_of(options.folder)
    if made is not None and made.benchmark != benchmark.name:
        raise RunError(f"the pictures in {str(options.folder)!r} are of {made.benchmark}, not of {benchmark.name}.")
    split = options.split or (made.split if made else benchmark.splits[0])
    data = options.data or (made.data if made else None)
    tasks = benchmark.load(data, split, made.size if made else None)
    with held(options.folder):
        judge = options.judge.open() if benchmark.needs_judge else None
        try:
            if judge is not None:
                judge.keep(options.folder / "judge")
            work = _compared if options.against is not None else _scored
            figures = work(options, benchmark, split, tasks, judge)
        finally:
            if judge is not None:
                judge.close()
    if options.json:
        print(json.dumps(figures))
    return 1 if figures["failed"]["count"] else 0


def _scored(
    options: JudgeEdits, benchmark: EditBenchmark, split: str, tasks: list[EditTask], judge: Judge | None
) -> dict:
    there = _there(tasks, options.folder)
    with _Bar("judging", len(there)) as on_done:
        found, failed = judged(
            there, lambda task: benchmark.score(task, open_picture(result_of(options.folder, task)), judge),
            options.judge.judge_calls, on_done,
        )  # fmt: skip
    figures = benchmark.summarize([(task, found[task.name].scores) for task in there if task.name in found])
    rows = benchmark.rows(figures)
    title = f"{benchmark.title}, {split}: {options.folder.name}" + (f", judged by {judge.name}" if judge else "")
    head = _head(benchmark, split, judge, tasks, there, found, failed) | {"figures": figures}
    write_scores(options.folder, there, found, failed, head)
    tables.show([tables.Section(title, rows[0], rows[1:])], _notes(head, options.folder), markdown=False)
    return head


def _compared(options: JudgeEdits, benchmark: EditBenchmark, split: str, tasks: list[EditTask], judge: Judge) -> dict:
    there = _there(_there(tasks, options.folder), options.against)

    def one(task: EditTask):
        ours, other = (open_picture(result_of(folder, task)) for folder in (options.folder, options.against))
        return benchmark.prefer(task, ours, other, judge)

    with _Bar("comparing", len(there)) as on_done:
        found, failed = judged(there, one, options.judge.judge_calls, on_done)
    figures = {}
    for group in ("all", *dict.fromkeys(task.groups["language"] for task in there),
                  *sorted({task.groups["category"] for task in there})):  # fmt: skip
        own = [found[t.name] for t in there if t.name in found and group in ("all", *t.groups.values())]
        counts = [sum(p.score == score for p in own) for score in (1.0, 0.5, 0.0)]
        figures[group] = dict(zip(("better", "neither", "worse"), counts, strict=True)) | {
            "unsteady": sum(not p.steady for p in own)
        }
    rows = [(group, *map(str, counts.values())) for group, counts in figures.items()]
    columns = ("", "better", "neither", "worse", "changed with the order")
    title = f"{benchmark.title}, {split}: {options.folder.name} against {options.against.name}, judged by {judge.name}"
    head = _head(benchmark, split, judge, tasks, there, found, failed)
    tables.show([tables.Section(title, columns, rows)], _notes(head, options.folder), markdown=False)
    return head | {"against": options.against.name, "preferences": figures}


def _there(tasks: list[EditTask], folder: Path) -> list[EditTask]:
    there = [task for task in tasks if result_of(folder, task).is_file()]
    if not there:
        raise BenchmarkError(
            f"{str(folder)!r} has none of the {len(tasks)} pictures, such as {tasks[0].name}.png; give the folder that "
            f"they lie in."
        )
    return there


def _head(benchmark, split, judge, tasks, there, found, failed) -> dict:
    names = {task.name for task in there}
    missing = [task.name for task in tasks if task.name not in names]
    return {
        "benchmark": benchmark.name, "version": benchmark.version, "split": split,
        "judge": judge.name if judge else None, "tasks": len(tasks), "judged": len(found),
        "missing": {"count": len(missing), "names": missing},
        "failed": {"count": len(failed), "names": list(failed)},
    }  # fmt: skip


def _notes(head: dict, folder: Path) -> list[str]:
    notes = [f"{head['judged']} of {head['tasks']} pictures are judged; a row each is in {folder / 'scores.jsonl'}."]
    if head["missing"]["count"]:
        notes.append(f"Not there, and in no figure: {head['missing']['count']}, {_names(head['missing']['names'])}.")
    if head["failed"]["count"]:
        notes.append(f"Not judged, and in no figure: {head['failed']['count']}, {_names(head['failed']['names'])}.")
    return notes


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Bar:
    """Shows how far the work is; entered, a function to be told of each task and why it failed, if it did."""

    def __init__(self, what: str, total: int, done: int = 0):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())  # fmt: skip
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(what, total=total, completed=done)

    def __enter__(self) -> Callable[[EditTask, str], None]:
        self._progress.start()
        return self._take

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def _take(self, task: EditTask, error: str) -> None:
        if error:
            self._progress.console.print(f"[red]{escape(task.name)}: {escape(error)}[/]")
        self._progress.update(self._task, advance=1)
