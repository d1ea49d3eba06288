"""Benchmarks from the command line, over the local model or any OpenAI-compatible server.

`python -m evaluation list | run | score | report | compare | merge | submission`,
and of editors: `edits | judge`.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evaluation import page, tables
from evaluation.benchmark import Benchmark, BenchmarkError
from evaluation.benchmarks import BENCHMARKS, EDIT_BENCHMARKS, benchmark_named, edit_benchmark_named
from evaluation.comparison import compare
from evaluation.edit_commands import Edits, JudgeEdits, edits, judge_edits
from evaluation.judging import Judge, TakesJudge
from evaluation.options import Run
from evaluation.report import read_report
from evaluation.run_folder import check_free
from evaluation.runner import Selection, open_folder, run_questions, select, settings_of, weights_digest
from evaluation.runs import Answer, RunError, read_run, read_runs, write_run
from evaluation.scoring_files import Score, score
from evaluation.submission import write_submission
from evaluation.summary import summarize
from pacore.backends import Backend, BackendError
from pacore.coordination import Plan, PlanError
from pacore.journal import JournalError
from vlm.commands import exit_code
from vlm.sampling import SamplingError


@dataclass
class List:
    """List the benchmarks: their splits, where their data comes from, and where a copy of it may be put."""

    json: bool = False
    """End with one JSON line."""


@dataclass
class Report:
    """Show the figures of a run, also while it is at work, or of several runs of one benchmark beside each other."""

    runs: Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
    """The runs' folders; shards of one run are put together, and other runs are compared with the first."""
    html: Path | None = None
    """Write one page with every question, answer and verdict, which needs no network and no other file."""
    markdown: bool = False
    """Markdown in place of tables."""
    json: bool = False
    """End with one JSON line."""


@dataclass
class Compare:
    """Compare two runs on the questions that both answered: a paired test, and the questions that changed."""

    before: tyro.conf.Positional[Path]
    """A run's folder; of a run in shards, what `merge` wrote."""
    after: tyro.conf.Positional[Path]
    """Another one."""
    markdown: bool = False
    """Markdown in place of tables."""
    json: bool = False
    """End with one JSON line."""


@dataclass
class Merge:
    """Put the shards of a run together into one folder."""

    out: tyro.conf.Positional[Path]
    """A folder that is not there yet."""
    runs: Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
    """The shards' folders."""


@dataclass
class Submission:
    """Write the file that the benchmark's own server takes, for a split whose answers are not published."""

    folder: tyro.conf.Positional[Path]
    """A finished run's folder; of a run in shards, what `merge` wrote."""
    out: tyro.conf.Positional[Path]
    """A JSON file that is not there yet."""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Submission, tyro.conf.subcommand("submission")]
    | Annotated[Edits, tyro.conf.subcommand("edits")]
    | Annotated[JudgeEdits, tyro.conf.subcommand("judge")]
)


def list_benchmarks(options: List) -> int:
    fields = ("name", "title", "version", "splits", "source", "layout")
    known = [benchmark_named(name) for name in sorted(BENCHMARKS)]
    known += [edit_benchmark_named(name) for name in sorted(EDIT_BENCHMARKS)]
    listed = [{key: getattr(benchmark, key) for key in fields} for benchmark in known]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v for v in row.values()) for row in listed]
    columns = ("name", "title", "version", "splits", "hub id", "in a folder")
    tables.show([tables.Section("Benchmarks", columns, rows, "left")], [], markdown=False)
    if options.json:
        print(json.dumps(listed))
    return 0


async def run(options: Run) -> int:
    """Returns 1 where answers failed, else 0."""
    benchmark = benchmark_named(options.benchmark)
    split = options.split or benchmark.splits[0]
    options.check_sight()
    plan, room = options.how.plan_for(options.samples), options.room
    questions = benchmark.load(options.data, split, _template(options.prompt_file))
    selection = select(questions, options.limit, options.shard_of)
    if options.source.base_url is None:  # a model takes its time to load
        check_free(options.folder(split, options.source.model or "mini"), options.resume)
    judge = _judge(options, benchmark)
    try:
        backend = await options.source.open()
        try:
            failed = await _run(options, benchmark, split, selection, plan, backend, judge, room)
        finally:
            await backend.close()
    finally:
        if judge is not None:
            judge.close()
    return 1 if failed else 0


async def _run(
    options: Run, benchmark: Benchmark, split: str, selection: Selection, plan: Plan, backend: Backend,
    judge: Judge | None, room: int,
) -> int:  # fmt: skip
    """Returns how many answers failed."""
    settings = settings_of(
        benchmark, split, selection, plan, model=backend.name, weights=_weights(options),
        template=_template(options.prompt_file), samples=options.samples, limit=options.limit,
        pictures=not options.no_pictures, blind=options.blind, shard=options.shard_of,
    )  # fmt: skip
    folder = open_folder(options.folder(split, backend.name), settings, selection, options.source.base_url,
                         options.resume)  # fmt: skip
    finished = None
    try:
        if judge is not None:
            judge.keep(folder.path / "judge")
            benchmark = benchmark.judged_by(judge)
        with _Bar(folder.answered.values(), _wanted(selection, options)) as bar:
            await run_questions(backend, benchmark, selection, plan, folder, room, bar.take)
        finished = time.time()
    except BackendError as error:
        said = f"{error} {len(folder.answered)} answers are in {str(folder.path)!r}; --resume goes on with the others."
        raise RunError(said) from error
    finally:
        folder.close(finished)
    summary = summarize(read_run(folder.path), benchmark)
    tables.show(*tables.of_summary(summary), markdown=False)
    print(f"The run is in {folder.path}")
    if options.json:
        print(json.dumps(summary))
    return summary["failed"]["count"]


def _judge(options: Run, benchmark: Benchmark) -> Judge | None:
    if options.judge.judge_url is not None and not isinstance(benchmark, TakesJudge):
        raise RunError(f"{benchmark.name} is judged by rules alone; leave out --judge-url.")
    return options.judge.open()


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the prompt file {str(path)!r} cannot be read ({error}); give a text file.") from None


def _weights(options: Run) -> str | None:
    if options.source.base_url is not None:
        return None
    from vlm.answering import locate

    return weights_digest(locate(options.source.model or "mini"))


def _wanted(selection: Selection, options: Run) -> int:
    given = [q for _, q in selection.places if not (options.no_pictures and q.has_pictures)]
    return len(given) * options.samples


class _Bar:
    """Shows how far the run is; failures as they come."""

    def __init__(self, answered, wanted: int):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[status]}"))  # fmt: skip
        self._progress = Progress(*columns, console=Console(stderr=True))
        done = list(answered)
        self._scores = [answer.score for answer in done if answer.score is not None]
        self._failed = 0
        self._task = self._progress.add_task("answers", total=wanted, completed=len(done), status="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def take(self, answer: Answer) -> None:
        if answer.error:
            self._failed += 1
            self._progress.console.print(f"[red]{escape(answer.id)}: {escape(answer.error)}[/]")
        elif answer.score is not None:
            self._scores.append(answer.score)
        status = f"score {sum(self._scores) / len(self._scores):.1%}" if self._scores else ""
        status += f" [red]{self._failed} failed[/]" if self._failed else ""
        self._progress.update(self._task, advance=1, status=status)


def report(options: Report) -> int:
    if options.html is not None:
        page.check_out(options.html)
    made = read_report(_folders(options.runs))
    if options.html is not None:
        with Console(stderr=True).status("making the page"):
            page.write_page(made, options.html)
    tables.show(*made.tables(), markdown=options.markdown)
    if options.html is not None:
        print(f"The page is {options.html}")
    if options.json:
        print(json.dumps(made.as_json()))
    return 0


def compare_runs(options: Compare) -> int:
    compared = compare(read_run(options.before), read_run(options.after))
    tables.show(*tables.of_comparison(compared), markdown=options.markdown)
    if options.json:
        print(json.dumps(compared))
    return 0


def merge(options: Merge) -> int:
    merged = read_runs(_folders(options.runs))
    write_run(merged, options.out)
    print(f"{len(merged.questions)} questions and {len(merged.answers)} answers are in {options.out}")
    return 0


def submission(options: Submission) -> int:
    """Returns 1 where questions of the run are not in the file, else 0."""
    finished = read_run(options.folder)
    written, missing = write_submission(finished, benchmark_named(finished.settings.benchmark), options.out)
    print(f"{written} answers are in {options.out}")
    if missing:
        print(f"Not in it, for they have no answer: {len(missing)} questions, {', '.join(missing[: tables.IDS_SHOWN])}")
    return 1 if missing else 0


def _folders(folders: list[Path]) -> list[Path]:
    if not folders:
        raise RunError("no run is named; give its folder.")
    return folders


# Everything whose message is one line for the person who asked.
REFUSALS = (RunError, BenchmarkError, BackendError, PlanError, SamplingError, JournalError)


def main() -> int:
    """Runs the command line; 0, 1 where answers of a run failed, 2 with one line where the request is wrong."""
    options = tyro.cli(
        Command, prog="python -m evaluation", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )

    def work() -> int:
        match options:
            case Run():
                return asyncio.run(run(options))
            case List():
                return list_benchmarks(options)
            case Score():
                return score(options)
            case Report():
                return report(options)
            case Compare():
                return compare_runs(options)
            case Merge():
                return merge(options)
            case Submission():
                return submission(options)
            case Edits():
                return edits(options)
            case JudgeEdits():
                return judge_edits(options)

    return exit_code(work, REFUSALS, interrupted="interrupted; the same command with --resume goes on.")


if __name__ == "__main__":
    sys.exit(main())
