"""Parallel Coordinated Reasoning from the command line, over the local model or any OpenAI-compatible server.

`python -m pacore ask | batch | serve | bench`.
"""

import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pacore.backends import BackendError
from pacore.batch import BatchError, read_answered, read_questions, run_batch
from pacore.coordination import Event, Outcome, PacoreError, PlanError, solve
from pacore.journal import Journal, JournalError
from pacore.options import Rounds, Source
from vlm.commands import exit_code
from vlm.pictures import PictureError, open_picture
from vlm.sampling import SamplingError


@dataclass
class Ask:
    """Ask about pictures, or about none: `python -m pacore ask chart.png "What is the sum of A and C?" --rounds 16`.

    The answer is written to the standard output; the rounds, each trajectory's conclusion and the cost to the standard
    error.
    """

    words: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="[PICTURE ...] QUESTION")]
    """The pictures' paths, if any, and last the question."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    how: tyro.conf.OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    journal: Path | None = None
    """Keep every finished trajectory in this file, and take those that are there from it."""
    quiet: bool = False
    """The answer alone."""


@dataclass
class Batch:
    """Answer the questions of a JSONL file: `python -m pacore batch questions.jsonl answers.jsonl --rounds medium`.

    A line holds `question` (and `images`, a list of paths) or `messages`, and perhaps an `id`.
    """

    questions: tyro.conf.Positional[Path]
    """The input."""
    answers: tyro.conf.Positional[Path]
    """The output, a line a question as it is done; its journal lies beside it."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    how: tyro.conf.OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    at_once: int = 8
    """Questions in work at the same time."""
    resume: bool = False
    """Go on with an output that is there: what is answered is kept, what failed is asked again."""
    export: Path | None = None
    """Also write every trajectory to this JSONL file at the end."""


@dataclass
class Serve:
    """Serve Parallel Coordinated Reasoning as an OpenAI-compatible endpoint, in front of the model or another server.

    A request chooses its rounds by the model's name (`mini:medium`, `mini:16,4`) or a `pacore` field in its body.
    """

    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    how: tyro.conf.OmitArgPrefixes[Rounds] = field(default_factory=Rounds)
    host: str = "127.0.0.1"
    """0.0.0.0 to be reached from other machines; then set a key."""
    port: int = 8000
    """Of the server."""
    key_variable: str = "TRIPTYCH_API_KEY"
    """The environment variable that holds the key clients must send; without it everybody is let in."""
    http_pictures: bool = False
    """Fetch pictures from public web addresses; otherwise only data: addresses are taken."""
    journal: Path | None = None
    """Keep every finished trajectory in this file, and take those that are there from it."""


@dataclass
class Bench:
    """Measure what coordination costs beside the calls, and what a quorum saves where some of the calls are slow.

    A local server answers after delays drawn by seed: log-normal, for the second part a twentieth of them 20 times as
    long. Everything else is real, the journal on disk too. It takes about five minutes.
    """

    json: bool = False
    """End with one JSON line."""
    questions: int = 125
    """Of the first part, 16 trajectories each."""
    slow_questions: int = 200
    """Of the second part, 17 trajectories each."""
    median: float = 1.0
    """Of the delays, in seconds."""


class UsageError(ValueError):
    """The command makes no sense; the message is one line with the remedy."""


async def ask(options: Ask) -> None:
    if not options.words:
        raise UsageError('nothing is asked; write a question, like: python -m pacore ask picture.png "What is this?"')
    *pictures, question = options.words
    if os.path.isfile(question):
        raise UsageError(f"the last word, {question!r}, is a file; write the question after the pictures.")
    plan = options.how.plan()
    content = [{"type": "image", "image": open_picture(picture)} for picture in pictures]
    conversation = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    console = Console(stderr=True, quiet=options.quiet, highlight=False)
    journal = Journal(options.journal) if options.journal else None
    backend = await options.source.open()
    try:
        outcome = await solve(backend, conversation, plan, journal=journal, on_event=_Story(console).tell, stream=False)
    finally:
        await backend.close()
        if journal:
            journal.close()
    print(outcome.answer.text)
    for note in outcome.notes:
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    console.print(f"[dim]{_cost(outcome, plan.budget)}[/]")


class _Story:
    """Tells of the rounds as they go."""

    def __init__(self, console: Console):
        self.console = console

    def tell(self, event: Event) -> None:
        if event.kind == "round":
            many = f"{event.width} trajectories" if event.width > 1 else "synthesis"
            self.console.print(f"[bold]round {event.round + 1}[/]: {many}")
        elif event.kind == "trajectory":
            t = event.trajectory
            said = "[dim]cancelled[/]" if t.cancelled else f"[red]{escape(t.error)}[/]" if t.error else ""
            brief = " ".join(t.message.split())
            brief = brief if len(brief) <= 160 else brief[:157] + "…"
            self.console.print(f"  {t.index + 1:3d}  {said or escape(brief)}", soft_wrap=True)


def _cost(outcome: Outcome, budget) -> str:
    tokens = f"{outcome.prompt_tokens:,} prompt and {outcome.completion_tokens:,} completion tokens"
    price = budget.cost(outcome.prompt_tokens, outcome.completion_tokens) if budget else 0.0
    calls = sum(map(len, outcome.rounds))
    return f"{calls} trajectories, {tokens}, {outcome.seconds:.1f} s" + (f", {price:.4g} in money" if price else "")


async def batch(options: Batch) -> int:
    """Returns how many questions have no answer."""
    plan = options.how.plan()
    if options.at_once < 1:
        raise UsageError(f"--at-once is {options.at_once}; it must be at least 1.")
    questions = read_questions(options.questions)
    out = options.answers
    if out.exists() and not options.resume:
        raise UsageError(f"{str(out)!r} is there already; add --resume to go on with it, or write to another file.")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {str(out.parent)!r}; make it first.")
    answered = read_answered(out)
    left = [question for question in questions if question.id not in answered]
    journal = Journal(out.with_name(out.name + ".journal"))
    failed: list[dict] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[status]}"))  # fmt: skip
    try:
        backend = await options.source.open()
        try:
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task("questions", total=len(questions), completed=len(answered), status="")

                def on_row(row: dict) -> None:
                    if row["error"]:
                        failed.append(row)
                        bar.console.print(f"[red]{escape(row['id'])}: {escape(row['error'])}[/]", soft_wrap=True)
                    else:
                        answered.add(row["id"])
                    bar.update(task, advance=1, status=f"{len(failed)} failed" if failed else "")

                await run_batch(backend, left, plan, out, journal, options.at_once, on_row)
        except BackendError as error:
            had = f"{len(answered)} of {len(questions)} questions are answered"
            raise BatchError(f"{error} {had}; --resume goes on with the others.") from error
        finally:
            await backend.close()
        for total in journal.totals():
            tokens = f"{total.prompt_tokens:,} + {total.completion_tokens:,} tokens, {total.seconds:.1f} s of calls"
            counts = f"{total.finished} trajectories, {total.failed} failures, {total.cancelled} cancelled"
            print(f"round {total.round + 1}: {counts}, {tokens}", file=sys.stderr)
        if options.export:
            journal.export(options.export)
    finally:
        journal.close()
    return len(failed)


async def serve(options: Serve) -> None:
    from pacore.server import create_app
    from vlm.serving import serve as serve_app

    plan = options.how.plan()
    key = os.environ.get(options.key_variable) or None
    journal = Journal(options.journal) if options.journal else None
    backend = await options.source.open()
    try:
        app = create_app(
            backend, plan=plan, api_key=key, allow_http_pictures=options.http_pictures, journal=journal
        )  # fmt: skip
        where = f"http://{options.host}:{options.port}/v1"
        print(f"{backend.name} at {where}" + ("" if key else f", open to all: no {options.key_variable}"), flush=True)
        await serve_app(app, options.host, options.port)
    finally:
        try:
            await backend.close()
        finally:
            if journal:
                journal.close()


def bench(options: Bench) -> None:
    from pacore import benchmark

    for name, value, least in (
        ("questions", options.questions, 1),
        ("slow-questions", options.slow_questions, 1),
        ("median", options.median, 0.01),
    ):
        if not least <= value < 1e6:
            raise UsageError(f"--{name} is {value:g}; it must be at least {least:g} and below a million.")
    benchmark.bench(options.json, options.questions, options.slow_questions, options.median)


# Everything whose message is one line for the person who asked.
REFUSALS = (UsageError, BatchError, BackendError, PacoreError, PlanError, SamplingError, JournalError, PictureError)


def main() -> int:
    """Runs the command line; 0, 1 where questions of a batch failed, 2 with one line where the request is wrong."""
    options = tyro.cli(
        Ask | Batch | Serve | Bench,
        prog="python -m pacore",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )

    def work() -> int | None:
        if isinstance(options, Batch):
            return 1 if asyncio.run(batch(options)) else 0
        if isinstance(options, Bench):
            return bench(options)
        return asyncio.run(ask(options) if isinstance(options, Ask) else serve(options))

    return exit_code(work, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
