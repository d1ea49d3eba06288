"""A model as judge, behind an OpenAI-compatible endpoint.

A verdict is read by a rule; what cannot be read is asked for again, a few times, at rising temperature. What is never
had is a `BenchmarkError`: the answer counts as not judged, and nothing is scored 0 because a server was away. All that
the judge says is in a journal before it counts, so that a run that goes on pays for nothing twice.
"""

import asyncio
import concurrent.futures
import itertools
import os
import re
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from evaluation.benchmark import Benchmark, BenchmarkError
from pacore.backends import Backend, BackendError, Completion, Sampling
from pacore.journal import Journal, trajectory_key
from pacore.openai_backend import OpenAIBackend

T = TypeVar("T")

# As in `evaluation.runner`: the folder's lock says that nobody else works on the journal.
LEASE = 2.0

# Calls in a row that failed for good, after which the judge counts as gone: waiting out the retries of a thousand
# further ones would take hours.
GONE = 8


class Judge:
    """Asks a backend for verdicts, from any thread; the calls run in an event loop of the judge's own.

    Attributes:
        name: of the model.

    Args:
        open_backend: makes the backend, within that loop.
        tries: new calls for one verdict, in one session, until one can be read.

    Raises:
        BackendError: the backend cannot be had.
        BenchmarkError: no tries at all.
    """

    def __init__(self, open_backend: Callable[[], Coroutine[Any, Any, Backend]], tries: int = 3):
        if tries < 1:
            raise BenchmarkError(f"the judge has {tries} tries; it must have at least 1.")
        self._tries, self._journal, self._failures, self._gone = tries, None, 0, ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._backend = self._run(open_backend())
        except BaseException:
            self._stop()
            raise
        self.name = self._backend.name

    @classmethod
    def connect(cls, base_url: str, model: str | None = None, tries: int = 3, **options: Any) -> "Judge":
        """For `OpenAIBackend.connect`, which see. Raises BackendError."""
        return cls(lambda: OpenAIBackend.connect(base_url, model, **options), tries)

    def keep(self, path: Path) -> None:
        """From now on its words are recorded in the journal at `path`, and read from it. Raises JournalError."""
        self._journal = Journal(path, lease=LEASE)

    def ask(self, conversation: list[dict], read: Callable[[str], T], about: str) -> T:
        """The verdict: what `read` makes of the judge's words.

        Verdicts that could not be read in an earlier session are not paid for again, nor do they count as tries.

        Args:
            read: raises ValueError for words that are no verdict.
            about: what is judged, for messages and the journal.

        Raises:
            BenchmarkError: the judge cannot be had, or no verdict could be read.
            JournalError: its words cannot be recorded.
        """
        try:
            return self._run(self._ask(conversation, read, about))
        except concurrent.futures.CancelledError:
            raise BenchmarkError(
                f"{about}: the judge was closed before it answered; run again with --resume."
            ) from None

    def close(self) -> None:
        """Ends what is in flight."""
        self._run(self._end())
        self._stop()
        if self._journal is not None:
            self._journal.close()

    async def _ask(self, conversation: list[dict], read: Callable[[str], T], about: str) -> T:
        fresh, reason = 0, ""
        for attempt in itertools.count():
            # A judge that always takes the likeliest words says the same nonsense again.
            sampling = Sampling(temperature=min(1.0, 0.5 * attempt), seed=attempt)
            key = trajectory_key(
                conversation, sampling, backend=self.name, problem=about, round=attempt, index=0
            )  # fmt: skip
            if self._journal is None or not self._journal.has(key):
                if fresh == self._tries:
                    break
                fresh += 1
            words = (await self._complete(conversation, sampling, key, about, attempt)).text
            try:
                return read(words)
            except ValueError as error:
                reason = f"{error}: {_brief(words)!r}"
        raise BenchmarkError(
            f"{about}: the judge {self.name!r} gave no verdict that can be read, last {reason}; try again, or take "
            f"another judge."
        )

    async def _complete(
        self, conversation: list[dict], sampling: Sampling, key: str, about: str, attempt: int
    ) -> Completion:
        """Raises BenchmarkError: it cannot be had."""

        async def work() -> Completion:
            if self._gone:
                raise BackendError(self._gone, attempts=0)
            try:
                said = await self._backend.complete(conversation, sampling)
            except BackendError as error:
                self._failures += 1
                if error.fatal or self._failures >= GONE:
                    self._gone = str(error)
                raise
            self._failures = 0
            return said

        try:
            if self._journal is None:
                return await work()
            return await self._journal.once(key, problem=about, round=attempt, index=0, work=work)
        except BackendError as error:
            raise BenchmarkError(f"{about}: the judge {self.name!r} cannot be had: {error}") from error

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._backend.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@runtime_checkable
class TakesJudge(Protocol):
    """What a benchmark has besides, if a judge may read answers for it."""

    def judged_by(self, judge: Judge) -> Benchmark: ...


@dataclass
class JudgeOptions:
    """The judge of a command."""

    judge_url: str | None = None
    """Of the OpenAI-compatible server whose model judges, such as http://127.0.0.1:8000/v1."""
    judge_model: str | None = None
    """The server's name for it; by default the one it has."""
    judge_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds that server's key; a server without keys needs none."""
    judge_calls: int = 8
    """Calls to the judge in flight at most."""
    judge_retries: int = 5
    """Further tries of a call that failed in passing."""
    judge_tries: int = 3
    """Calls for one verdict until it can be read."""

    def open(self) -> Judge | None:
        """None where no server is named. Raises BackendError or BenchmarkError."""
        if self.judge_url is None:
            return None
        return Judge.connect(
            self.judge_url, self.judge_model, self.judge_tries, concurrency=self.judge_calls,
            retries=self.judge_retries, api_key=os.environ.get(self.judge_key_variable) or None,
        )  # fmt: skip


# Rules that read verdicts

_NUMBER = r"(\d{1,3}(?:\.\d{1,6})?)"
_PAIR = rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]"
_SCORES = re.compile(rf"\"?score\"?\s*:\s*{_PAIR}")
_BETTER = re.compile(r"\"?better\"?\s*:\s*\"?(first|second|same)\b", re.IGNORECASE)


def read_scores(words: str) -> tuple[float, float]:
    """Two scores from 0 to 10: the last `"score": [a, b]`, or the pair alone. Raises ValueError."""
    found = list(_SCORES.finditer(words)) or list(filter(None, [re.fullmatch(_PAIR, words.strip())]))
    if not found:
        raise ValueError("no two scores")
    first, second = float(found[-1][1]), float(found[-1][2])
    if max(first, second) > 10:
        raise ValueError("a score above 10")
    return first, second


def read_better(words: str) -> str:
    """`first`, `second` or `same`: the last `"better": …`. Raises ValueError."""
    if not (found := _BETTER.findall(words)):
        raise ValueError("no word of which is better")
    return found[-1].lower()


class Preference(NamedTuple):
    """Of two answers: `score` is 1 where ours is better, 0 where the other is, 0.5 where neither is.

    `steady` is False where the verdict changed with the order in which they were shown; then neither is better.
    """

    score: float
    steady: bool


def prefer(judge: Judge, ask_about: Callable[[T, T], list[dict]], ours: T, other: T, about: str) -> Preference:
    """Which of two is better, asked in both orders, as judges prefer places.

    Args:
        ask_about: the conversation about (first, second), to be answered as `read_better` reads.

    Raises:
        BenchmarkError: see `Judge.ask`.
    """
    straight = judge.ask(ask_about(ours, other), read_better, f"{about}, ours first")
    swapped = judge.ask(ask_about(other, ours), read_better, f"{about}, ours second")
    mirrored = {"first": "second", "second": "first", "same": "same"}[swapped]
    if straight != mirrored:
        return Preference(0.5, False)
    return Preference({"first": 1.0, "second": 0.0, "same": 0.5}[straight], True)


def _brief(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= 80 else line[:79] + "…"
