"""Asks a model a benchmark's questions and has the answers judged; killed at any point it goes on where it was.

Every answer is one `pacore.solve`: a plan without rounds is a single answer. All samples of a question begin together,
so that the local engine reads its prompt once for them.
"""

import asyncio
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import isinf
from pathlib import Path
from urllib.parse import urlsplit

from evaluation.benchmark import Benchmark, BenchmarkError, Question
from evaluation.kept_pictures import text_alone
from evaluation.rounds import judged_rounds
from evaluation.run_folder import RunFolder
from evaluation.runs import Answer, Member, RunError, Session, Settings, texts_of
from pacore.backends import Backend
from pacore.coordination import Outcome, PacoreError, Plan, PlanError, solve
from pacore.journal import Journal

ROOT = Path(__file__).resolve().parent.parent

WEIGHTS_TAIL = 2**20  # bytes of each file of weights that tell it from others


@dataclass(frozen=True)
class Selection:
    """The questions of a run.

    Attributes:
        places: (place in the benchmark's order, question), of this shard.
        prompts: SHA-256 of all, see `Settings`.
    """

    places: tuple[tuple[int, Question], ...]
    prompts: str


def select(questions: Sequence[Question], limit: int | None = None, shard: tuple[int, int] = (1, 1)) -> Selection:
    """The first `limit` questions, and of those every n-th for shard (i, n).

    Raises:
        RunError: a limit or a shard that leaves nothing, or two questions with one id.
    """
    if limit is not None and limit < 1:
        raise RunError(f"the limit is {limit}; it must be at least 1.")
    chosen = questions[:limit]
    number, of = shard
    if not 1 <= number <= of:
        raise RunError(f"the shard is {number}/{of}; use 1/{max(of, 1)} to {max(of, 1)}/{max(of, 1)}.")
    if of > len(chosen):
        raise RunError(f"{len(chosen)} questions cannot be shared among {of} shards; use at most {len(chosen)}.")
    digest = hashlib.sha256()
    known: set[str] = set()
    for question in chosen:
        if question.id in known:
            raise RunError(f"the question {question.id!r} is there twice; the data is not in its published layout.")
        known.add(question.id)
        digest.update(json.dumps([question.id, texts_of(question.conversation)]).encode())
    return Selection(tuple(enumerate(chosen))[number - 1 :: of], digest.hexdigest())


def settings_of(
    benchmark: Benchmark, split: str, selection: Selection, plan: Plan, *, model: str, weights: str | None = None,
    template: str | None = None, samples: int = 1, limit: int | None = None, pictures: bool = True,
    blind: bool = False, shard: tuple[int, int] = (1, 1),
) -> Settings:  # fmt: skip
    """What the run's folder says of it."""
    budget = plan.budget and {key: None if isinf(value) else value for key, value in asdict(plan.budget).items()}
    synthesis = plan.template and hashlib.sha256(Path(plan.template).read_bytes()).hexdigest()
    drawn = asdict(plan.sampling)
    return Settings(
        benchmark=benchmark.name, version=benchmark.version, split=split, prompts=selection.prompts, template=template,
        model=model, weights=weights, rounds=plan.rounds,
        plan={"compaction": plan.compaction, "template": synthesis, "quorum": plan.quorum,
              "hedge": plan.hedge, "adaptive": plan.adaptive and asdict(plan.adaptive), "views": plan.views,
              "budget": budget},
        sampling={key: drawn[key] for key in ("temperature", "top_p", "top_k", "max_tokens")},
        samples=samples, seed=plan.seed, limit=limit, pictures=pictures, blind=blind,
        shards=(shard[0],), shard_count=shard[1],
    )  # fmt: skip


def open_folder(
    path: Path, settings: Settings, selection: Selection, server: str | None = None, resume: bool = False
) -> RunFolder:
    """See `RunFolder.open`; questions with pictures are withheld where the settings say so."""
    questions = [(place, q, settings.pictures or not q.has_pictures) for place, q in selection.places]
    return RunFolder.open(path, settings, questions, _session(server), resume)


async def run_questions(
    backend: Backend,
    benchmark: Benchmark,
    selection: Selection,
    plan: Plan,
    folder: RunFolder,
    at_once: int,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> None:
    """Answers what the folder has no answer to, and records every answer in it as it comes in.

    Args:
        at_once: trajectories that may be in work or wait for the backend; a question begins, with all its samples,
            when it fits, or when nothing else is in work.

    Raises:
        BackendError: every other question would fail in the same way; those in work are cancelled.
        JournalError: a trajectory cannot be recorded.
    """
    settings, width = folder.settings, max((1, *plan.rounds))
    journal = Journal(folder.path / "journal")
    running: set[asyncio.Task] = set()

    async def work(question: Question, sample: int) -> None:
        asked = text_alone(question.conversation) if settings.blind else question.conversation
        answer = await _answer(backend, benchmark, question, asked, sample, plan, journal)
        folder.add(answer)
        on_answer(answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _, question in selection.places:
                left = [s for s in range(settings.samples) if (question.id, s) not in folder.answered]
                if not settings.pictures and question.has_pictures:
                    continue
                while running and (len(running) + len(left)) * width > at_once:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for sample in left:
                    task = group.create_task(work(question, sample))
                    running.add(task)
                    task.add_done_callback(running.discard)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        journal.close()


async def _answer(
    backend: Backend, benchmark: Benchmark, question: Question, asked: list[dict], sample: int, plan: Plan,
    journal: Journal,
) -> Answer:  # fmt: skip
    """One answer and its verdict. What cannot be had is a failed answer; only defects and a full disk go up."""
    problem = f"{question.id} sample {sample}"  # the seeds follow from it, in whatever company it is asked
    try:
        outcome = await solve(backend, asked, plan, problem=problem, journal=journal)
    except (PacoreError, PlanError) as error:
        return Answer(question.id, sample, time.time(), error=str(error))
    answer = _came_back(question, sample, outcome, coordinated=bool(plan.rounds))
    try:
        # In a thread, as a judge may be a server far away.
        verdict = await asyncio.to_thread(benchmark.score, question, answer.response)
        answer = replace(answer, rounds=await asyncio.to_thread(judged_rounds, benchmark, question, answer.rounds))
    except BenchmarkError as error:  # the judge cannot be had; the answer itself is in the journal
        return replace(answer, error=f"not judged: {error}")
    return replace(answer, score=verdict.score, parsed=verdict.parsed, guessed=verdict.guessed, modern=verdict.modern,
                   note=verdict.note)  # fmt: skip


def _came_back(question: Question, sample: int, outcome: Outcome, coordinated: bool) -> Answer:
    calls = [[(t, [c for c in (t.completion, t.compaction) if c]) for t in round_] for round_ in outcome.rounds]
    members = tuple(
        tuple(
            Member(t.message, t.error, t.cancelled, t.completion.finish if t.completion else "",
                   sum(c.prompt_tokens for c in made), sum(c.completion_tokens for c in made))
            for t, made in round_
        )
        for round_ in calls
    )  # fmt: skip
    # A model's words may hold half of a surrogate pair, which no file has room for; what is judged is what is stored.
    response = outcome.answer.text.encode("utf-8", "replace").decode()
    return Answer(
        question.id, sample, time.time(), response=response, reasoning=outcome.answer.reasoning,
        finish=outcome.answer.finish, prompt_tokens=outcome.prompt_tokens, completion_tokens=outcome.completion_tokens,
        # Of the calls and not of our clock: those that come from the journal were waited for in an earlier session.
        seconds=round(sum(max(sum(c.seconds for c in made) for _, made in round_) for round_ in calls), 3),
        notes=outcome.notes, rounds=members if coordinated else (),
    )  # fmt: skip


# What ran


def weights_digest(folder: Path) -> str:
    """Tells these weights from others of the same name, without reading gigabytes: names, sizes and ends of files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - WEIGHTS_TAIL))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()


def _session(server: str | None) -> Session:
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "triptych"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the sources, not installed
            continue
    return Session(time.time(), None, versions, _commit(), server and _address(server))


def _address(url: str) -> str:
    """Without user, password and query, which are nobody's business."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _commit() -> str | None:
    """Of this repository; None where it is not one, or where there is no git."""
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top).resolve() != ROOT:
            return None  # installed inside of somebody else's repository
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
