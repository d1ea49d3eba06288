"""Who of a journal's processes lives: each holds a lock that the system takes from it at any end, kill -9 too."""

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# What `FileLock` raises besides: a disk that is full or read-only, a file system without locks.
_NO_LOCK = (OSError, NotImplementedError)


class Presence:
    """A locked file beside the journal, from now until `close` or the process's end.

    A pid would not do, even with its start time: containers that share a folder do not see each other's processes.
    Where nothing can be locked, nobody learns that this one is dead before its lease ends.

    Attributes:
        name: in the file's name and in the journal; 32 hexadecimal digits.
    """

    def __init__(self, journal: Path):
        self._journal = journal
        while True:
            self.name = uuid.uuid4().hex
            # Not bound to a thread: whoever closes a journal need not be who opened it.
            self._lock = FileLock(self._file(self.name), thread_local=False)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:  # another process took it for a dead one's, between its making and its locking
                continue
            except _NO_LOCK:
                return
            if self._file(self.name).exists():
                return
            self._lock.release()  # the same, and it is gone already

    @contextlib.contextmanager
    def dead(self) -> Iterator[list[str]]:
        """The names of those who left their files and hold them no more; the files go at the end of the block.

        Nobody else is told of the same ones meanwhile. One who has closed the journal, or whose journal was copied
        from elsewhere, has no file here; nothing is known of it.
        """
        with contextlib.ExitStack() as held:
            names = [name for name in self._others() if self._taken(name, held)]
            yield names
            for name in names:
                with contextlib.suppress(OSError):
                    self._file(name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._file(self.name).unlink(missing_ok=True)
            self._lock.release()

    def _others(self) -> list[str]:
        pattern = re.compile(re.escape(self._file("").name) + "([0-9a-f]{32})")
        found = map(pattern.fullmatch, (path.name for path in self._journal.parent.iterdir()))
        return [match[1] for match in found if match and match[1] != self.name]

    def _taken(self, name: str, held: contextlib.ExitStack) -> bool:
        lock = FileLock(self._file(name), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, *_NO_LOCK):
            return False
        held.callback(lock.release)
        return True

    def _file(self, name: str) -> Path:
        return self._journal.with_name(f"{self._journal.name}-worker-{name}")
