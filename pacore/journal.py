"""The record of every trajectory, on disk before it counts: a killed run pays again only for what was in flight.

One SQLite file in WAL mode, on a local disk (WAL needs shared memory, which network file systems lack). Any number of
processes may use it at once: whoever works on a trajectory holds a lease, and the others wait for the result. What a
process worked on when it died is free at once (see `pacore.presence`); one that only stalls keeps it for its lease.
"""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacore.backends import Completion, Sampling
from pacore.database import Job, JournalError, Writer, explained, one_line, open_database
from pacore.presence import Presence
from vlm.pictures import open_picture

__all__ = ["Journal", "JournalError", "RoundTotals", "conversation_digest", "trajectory_key"]

# Seconds without a heartbeat after which a worker counts as lost. One that stalls for longer pays for a trajectory
# twice.
LEASE = 20.0
BEATS_A_LEASE = 4

# Seconds between two looks at a trajectory that somebody else works on, growing from the first to the second.
SHORTEST_LOOK, LONGEST_LOOK = 0.01, 0.25

_TABLES = """
CREATE TABLE trajectories (
    key TEXT PRIMARY KEY,
    problem TEXT NOT NULL,
    round INTEGER NOT NULL,
    place INTEGER NOT NULL,
    status TEXT NOT NULL,  -- working, finished, failed, cancelled
    worker TEXT NOT NULL,
    beat INTEGER NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL,  -- as in the completion, to be summed
    completion TEXT  -- JSON, which carries any string and every digit of a number; last, so that sums need not read it
);
CREATE INDEX places ON trajectories (problem, round, place);
CREATE INDEX working ON trajectories (worker) WHERE status = 'working';
CREATE TABLE losses (  -- every time a trajectory was not had, also where a later try had it
    key TEXT NOT NULL,
    problem TEXT NOT NULL,
    round INTEGER NOT NULL,
    status TEXT NOT NULL,  -- failed, cancelled
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL
);
CREATE INDEX losses_of_key ON losses (key);
"""

# A free trajectory is taken: a new one, one that was lost, or one whose worker has not moved since it was looked at.
_CLAIM = """
INSERT INTO trajectories (key, problem, round, place, status, worker, beat)
VALUES (:key, :problem, :round, :place, 'working', :worker, 0)
ON CONFLICT (key) DO UPDATE SET status = 'working', worker = :worker, beat = beat + 1
WHERE status IN ('failed', 'cancelled') OR (status = 'working' AND worker = :still AND beat = :beat)
"""

_FREE = "UPDATE trajectories SET status = 'cancelled' WHERE status = 'working' AND worker GLOB ?"

_LEAVE = "UPDATE trajectories SET status = :status WHERE key = :key AND worker = :worker AND status = 'working'"

_LOSE = """
INSERT INTO losses (key, problem, round, status, attempts, error)
VALUES (:key, :problem, :round, :status, :attempts, :error)
"""

_BEAT = "UPDATE trajectories SET beat = beat + 1 WHERE status = 'working' AND worker GLOB ?"

# Whoever is first: a worker that stalled beyond its lease may come back to find the work done.
_FINISH = """
UPDATE trajectories SET status = 'finished', prompt_tokens = :prompt_tokens, completion_tokens = :completion_tokens,
    seconds = :seconds, completion = :completion
WHERE key = :key AND status <> 'finished'
"""

_TOTALS = """
SELECT round, sum(finished), sum(failed), sum(cancelled), sum(prompt_tokens), sum(completion_tokens), sum(seconds)
FROM (
    SELECT problem, round, 1 AS finished, 0 AS failed, 0 AS cancelled, prompt_tokens, completion_tokens, seconds
    FROM trajectories WHERE status = 'finished'
    UNION ALL
    SELECT problem, round, 0, status = 'failed', status = 'cancelled', 0, 0, 0.0 FROM losses
)
WHERE :problem IS NULL OR problem = :problem
GROUP BY round ORDER BY round
"""


_LOOK = "SELECT status, worker, beat, completion FROM trajectories WHERE key = ?"


@dataclass(frozen=True)
class RoundTotals:
    """What a round has taken so far.

    Attributes:
        round: from 0.
        finished: trajectories that are recorded.
        failed, cancelled: how often one was lost, also where a later try had it.
        prompt_tokens, completion_tokens, seconds: of the finished ones; seconds of calls, which overlap in time.
    """

    round: int
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Journal:
    """Opens the journal at `path`, or makes it.

    Args:
        lease: seconds without a sign of life after which a worker's trajectory is taken over; the same in all
            processes, as each shows its life four times in its own.

    Raises:
        JournalError: no such folder, no permission, not a journal, or of another form.
    """

    def __init__(self, path: str | os.PathLike, lease: float = LEASE):
        self.path, self.lease = Path(path), lease
        self._claims = itertools.count()
        self._reader = open_database(self.path, _TABLES)
        self._presence = Presence(self.path)
        # `totals` may be asked for from another thread than the event loop's.
        self._reading = threading.Lock()
        self._writer = Writer(self.path, open_database(self.path, _TABLES), lease / BEATS_A_LEASE, self._beat)
        self._writer.leave(self._free_the_dead_s)

    async def once(
        self,
        key: str,
        *,
        problem: str,
        round: int,
        index: int,
        work: Callable[[], Awaitable[Completion]],
    ) -> Completion:
        """The recorded completion of `key`, or else what `work` gives, recorded before it is returned.

        While anybody, here or in another process, works on the same key, their result is waited for; should they fail
        or die, it is our turn.

        Args:
            key: of `trajectory_key`.
            problem, round, index: where it belongs, for `totals` and `export`.

        Raises:
            JournalError: it cannot be recorded.
            Exception: what `work` raises, after it is recorded as failed or, for a cancellation, as cancelled; a later
                call tries again.
        """
        claim = {
            "key": key,
            "problem": _storable(problem),
            "round": round,
            "place": index,
            # Not only the journal: two tasks of one process may want the same trajectory too.
            "worker": f"{self._presence.name}/{next(self._claims)}",
        }
        known = await self._claim(claim)
        if known is not None:
            return known
        try:
            return await self._writer.commit(_finish(claim, await work()))
        except Exception as error:
            await self._writer.commit(_lose(claim, "failed", getattr(error, "attempts", 0), one_line(error)))
            raise
        except BaseException:  # cancelled, or the event loop is going: no time to await anything
            self._writer.leave(_lose(claim, "cancelled"))
            raise

    def has(self, key: str) -> bool:
        """Whether the completion of `key` is recorded."""
        return self._look(key)[3] is not None

    def totals(self, problem: str | None = None) -> list[RoundTotals]:
        """Of one problem, or over all; in the order of the rounds."""
        self._writer.flush()
        with explained(self.path), self._reading:
            rows = self._reader.execute(_TOTALS, {"problem": problem and _storable(problem)})
            return [RoundTotals(*row) for row in rows]

    def export(self, path: str | os.PathLike) -> int:
        """Writes a JSON line a trajectory, by problem, round and index; the file appears whole or not at all.

        Returns:
            The number of lines. A trajectory that is not finished has its `status` (working, failed, cancelled) and no
            text; `losses` tells of all the times it was not had.

        Raises:
            JournalError: the file cannot be written.
        """
        self._writer.flush()
        path = Path(path)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        count = 0
        try:
            # A connection of its own: reading takes long, and trajectories go on being recorded.
            with (
                contextlib.closing(open_database(self.path, _TABLES)) as connection,
                open(partial, "x", encoding="utf-8") as file,
            ):
                with explained(self.path):
                    for line in _lines(connection):
                        file.write(line + "\n")
                        count += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            raise JournalError(f"{str(path)!r} cannot be written ({one_line(error)}); check the folder.") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return count

    def close(self) -> None:
        """Ends after all that was recorded is on disk; what is still at work is left to its lease."""
        self._writer.close()
        self._presence.close()
        with self._reading:
            self._reader.close()

    # Leases

    async def _claim(self, claim: dict) -> Completion | None:
        """None once the trajectory is ours to work on; its completion as soon as it has one."""
        seen, quiet, now = None, 0.0, time.monotonic()
        look = SHORTEST_LOOK
        while True:
            status, worker, beat, completion = self._look(claim["key"])
            if completion is not None:
                return completion
            # A lease ends when nothing has changed for so long on our own clock: no two need agree on the time. Where
            # we ourselves were held up, the other may have been too: only time in which we looked is counted.
            before, now = now, time.monotonic()
            quiet = quiet + min(now - before, 2 * LONGEST_LOOK) if (worker, beat) == seen else 0.0
            seen = (worker, beat)
            if status != "working" or quiet >= self.lease:
                if await self._take(claim | {"still": worker, "beat": beat}):
                    return None
                continue
            await asyncio.sleep(look)
            look = min(LONGEST_LOOK, look * 1.5)

    async def _take(self, claim: dict) -> bool:
        try:
            return await self._writer.commit(lambda connection: connection.execute(_CLAIM, claim).rowcount == 1)
        except BaseException:
            # The claim may still be made after we have gone; this is carried out behind it.
            self._writer.leave(_lose(claim, "cancelled"))
            raise

    def _look(self, key: str) -> tuple[str, str, int, Completion | None]:
        """(status, worker, beat, completion); by the primary key, which is quick enough for the event loop."""
        with explained(self.path), self._reading:
            row = self._reader.execute(_LOOK, (key,)).fetchone()
        if row is None:
            return "", "", -1, None
        return *row[:3], _completion(row[3]) if row[0] == "finished" else None

    def _beat(self, connection: sqlite3.Connection) -> None:
        """Shows that our workers live, and takes what the dead have left."""
        connection.execute(_BEAT, (f"{self._presence.name}/*",))
        self._free_the_dead_s(connection)

    def _free_the_dead_s(self, connection: sqlite3.Connection) -> None:
        with self._presence.dead() as names:
            for name in names:
                connection.execute(_FREE, (f"{name}/*",))


def _lose(claim: dict, status: str, attempts: int = 0, error: str = "") -> Job:
    """A job that lets go of the trajectory, if it is still ours."""

    def job(connection: sqlite3.Connection) -> None:
        row = claim | {"status": status, "attempts": attempts, "error": _storable(error)}
        if connection.execute(_LEAVE, row).rowcount:
            connection.execute(_LOSE, row)

    return job


def _finish(claim: dict, completion: Completion) -> Job:
    """A job that returns the completion that counts: ours, unless another worker was first."""

    def job(connection: sqlite3.Connection) -> Completion:
        row = claim | vars(completion) | {"completion": json.dumps(vars(completion))}
        if connection.execute(_FINISH, row).rowcount:
            return completion
        late = "another worker, who took it over after the lease, was first"
        connection.execute(_LOSE, row | {"status": "failed", "error": late})
        return _completion(connection.execute(_LOOK, (claim["key"],)).fetchone()[3])

    return job


def _completion(spoken: str) -> Completion:
    fields = json.loads(spoken)
    if fields["logprobs"] is not None:
        fields["logprobs"] = tuple(fields["logprobs"])
    return Completion(**fields)


def _lines(connection: sqlite3.Connection) -> Iterator[str]:
    rows = connection.execute(
        "SELECT key, problem, round, place, status, completion FROM trajectories ORDER BY problem, round, place, key"
    )
    for key, problem, round, place, status, spoken in rows:
        line = {"key": key, "problem": problem, "round": round, "index": place, "status": status}
        if spoken is not None:
            line |= json.loads(spoken)
        losses = connection.execute("SELECT status, attempts, error FROM losses WHERE key = ? ORDER BY rowid", (key,))
        line["losses"] = [dict(zip(("status", "attempts", "error"), loss, strict=True)) for loss in losses]
        yield json.dumps(line, ensure_ascii=False).encode("utf-8", "replace").decode()


def _storable(text: str) -> str:
    """SQLite takes no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def trajectory_key(
    conversation: list[dict] | str, sampling: Sampling, *, backend: str, problem: str, round: int, index: int
) -> str:
    """The SHA-256 of everything that determines a trajectory, in hexadecimal digits.

    Args:
        conversation: or its `conversation_digest`, where many trajectories share it.
        backend: its name.
    """
    digest = conversation if isinstance(conversation, str) else conversation_digest(conversation)
    drawn = vars(sampling) | {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
    return _sha256(["trajectory", digest, drawn, backend, problem, round, index])


def conversation_digest(conversation: list[dict]) -> str:
    """The SHA-256 of turns and pictures; a file and the `data:` address of its bytes are the same picture."""
    turns = []
    for turn in conversation:
        content = turn["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts = [
            ["image", _picture_digest(part["image"])] if part["type"] == "image" else ["other", part]
            for part in content
        ]
        turns.append([turn["role"], parts])
    return _sha256(["conversation", turns])


def _picture_digest(picture: Any) -> str:
    """Of a file's bytes, or of an open picture's pixels; one that cannot be read is left for the backend to refuse."""
    try:
        if isinstance(picture, str) and picture.startswith("data:"):
            return hashlib.sha256(base64.b64decode(picture.partition(",")[2])).hexdigest()
        if isinstance(picture, str | os.PathLike):
            with open(picture, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        pixels = open_picture(picture)
        return _sha256([pixels.size, hashlib.sha256(pixels.tobytes()).hexdigest()])
    except (OSError, ValueError):
        return _sha256(["unreadable", str(picture)])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
