"""The journal's SQLite file: opened by any number of processes at once, written by one thread of each."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# In the file's header: "this is a journal", and of which form.
APPLICATION_ID, FORM = 0x50614A31, 1

# Seconds a statement waits while another process writes.
BUSY = 30.0

# Writes that share a commit, and so a wait for the disk.
BATCH = 256

# What is carried out within a transaction.
Job = Callable[[sqlite3.Connection], Any]


class JournalError(RuntimeError):
    """The journal cannot be opened, read or written; one line that names the file and the remedy."""


def open_database(path: Path, tables: str) -> sqlite3.Connection:
    """A connection to the journal, which is made, with its tables, where there is none.

    Raises:
        JournalError: no such folder, no permission, not a journal, or of another form.
    """
    with explained(path):
        connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path, tables)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, tables: str) -> None:
    # Before anything is changed: the file may be somebody's own. At one moment: between two, another process that makes
    # the journal may have brought its tables, and with the number read before they would be somebody's.
    connection.execute("BEGIN")
    application, form = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    foreign = application != APPLICATION_ID and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.execute("COMMIT")
    if foreign or (application == APPLICATION_ID and form != FORM):
        what = "another program's database" if foreign else f"of form {form}, this program writes form {FORM}"
        raise JournalError(f"the journal {str(path)!r} is {what}; give another path.")
    deadline = time.monotonic() + BUSY
    while True:
        try:
            mode = _pragma(connection, "journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # two that make it at once: SQLite does not wait here by itself
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise JournalError(f"the journal {str(path)!r} cannot be in WAL mode; put it on a local disk.")
    # What is committed is on the disk, even if the power fails.
    connection.execute("PRAGMA synchronous = FULL")
    if application == APPLICATION_ID:
        return
    connection.execute("BEGIN IMMEDIATE")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        for statement in tables.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORM}")
    connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, pragma: str) -> Any:
    return connection.execute(f"PRAGMA {pragma}").fetchone()[0]


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into JournalError."""
    try:
        yield
    except sqlite3.Error as error:
        if "locked" in str(error):
            remedy = "another process has been writing for long; end it, or try again"
        elif "not a database" in str(error) or "malformed" in str(error):
            remedy = "it is no journal, or damaged; give another path"
        else:
            remedy = "check the path, the permissions and the room on the disk"
        raise JournalError(f"the journal {str(path)!r} cannot be used ({one_line(error)}); {remedy}.") from error


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class Writer:
    """The thread that writes: commits wait for the disk, which the event loop must not.

    Jobs are carried out in their order; those that wait at the same time share a commit.

    Args:
        connection: closed by `close`, as nobody else may use it.
        pause: seconds between two calls of `beat`, a job that comes by itself whatever the event loop does.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, pause: float, beat: Job):
        self._path, self._connection, self._pause, self._beat = path, connection, pause, beat
        self._closed = False
        self._jobs: queue.SimpleQueue[tuple[Job, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"writes {path.name}", daemon=True)
        self._thread.start()

    async def commit(self, job: Job) -> Any:
        """What `job` returns, once it is on disk. It is carried out even if the caller is cancelled meanwhile.

        Raises:
            JournalError: it could not be written, or the writer is closed.
        """
        return await asyncio.shield(asyncio.wrap_future(self._submit(job)))

    def leave(self, job: Job) -> None:
        """Has the job carried out if it can be; for those who may not wait."""
        with contextlib.suppress(JournalError):
            self._submit(job)

    def flush(self) -> None:
        """Waits for all jobs given so far. Raises JournalError: closed."""
        self._submit(lambda connection: None).result()

    def close(self) -> None:
        """Ends after the jobs given so far."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _submit(self, job: Job) -> Future:
        if self._closed:
            raise JournalError(f"the journal {str(self._path)!r} is closed; open it again.")
        done: Future = Future()
        self._jobs.put((job, done))
        return done

    def _run(self) -> None:
        next_beat = time.monotonic() + self._pause
        closing = False
        while not closing:
            batch = self._next_jobs(next_beat - time.monotonic())
            if closing := None in batch:
                batch.remove(None)
            if time.monotonic() >= next_beat:
                batch.append((self._beat, Future()))
                next_beat = time.monotonic() + self._pause
            self._carry_out(batch)
        self._connection.close()

    def _next_jobs(self, patience: float) -> list:
        jobs = []
        with contextlib.suppress(queue.Empty):
            jobs.append(self._jobs.get(timeout=max(0.0, patience)))
            while len(jobs) < BATCH:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _carry_out(self, batch: list[tuple[Job, Future]]) -> None:
        if not batch:
            return
        try:
            results = self._transact([job for job, _ in batch])
        except Exception as error:
            # The file's own troubles are everybody's; a job's trouble (a number beyond 64 bits) is its own.
            if len(batch) == 1 or isinstance(error, JournalError):
                for _, done in batch:
                    done.set_exception(error)
            else:
                for entry in batch:
                    self._carry_out([entry])
            return
        for (_, done), result in zip(batch, results, strict=True):
            done.set_result(result)

    def _transact(self, jobs: list[Job]) -> list:
        with explained(self._path):
            # Locked at once: a transaction that begins by reading is refused the lock if another wrote meanwhile.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                results = [job(self._connection) for job in jobs]
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return results
