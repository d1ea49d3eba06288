"""Several processes on one journal: paid once, the living are left alone, and what the dead had is free at once."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from journals import SAID, Work, exported, once

from pacore.backends import Completion
from pacore.journal import Journal, RoundTotals
from pacore.presence import Presence

ROOT = Path(__file__).resolve().parents[1]

OTHER = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from pacore.backends import Completion
from pacore.journal import Journal

def paid(key):
    with open(sys.argv[3], "a") as file:
        file.write(key + "\\n")

async def main(journal, mode):
    async def work(key):
        paid(key)
        print("working", flush=True)
        if mode in ("hang", "stall"):
            await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(0.01)
        return Completion(f"{key} by {mode}", "", 1, 1, "stop")

    async def one(key):
        done = await journal.once(key, problem="p", round=0, index=int(key), work=lambda: work(key))
        print(done.text, flush=True)

    if mode == "many":
        print("ready", flush=True)
        sys.stdin.readline()
    await asyncio.gather(*(one(str(n)) for n in range(40 if mode == "many" else 1)))

asyncio.run(main(Journal(sys.argv[2], lease=float(sys.argv[5])), sys.argv[4]))
"""


@contextlib.contextmanager
def other(folder, mode, lease):
    """Another process on the same journal; it notes each trajectory it pays for in the file `paid`."""
    command = [sys.executable, "-c", OTHER, str(ROOT), str(folder / "j"), str(folder / "paid"), mode, str(lease)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def paid(folder) -> list[str]:
    return (folder / "paid").read_text().split()


def test_two_processes_share_one_journal_and_each_trajectory_is_paid_once(tmp_path):
    with other(tmp_path, "many", 20) as one, other(tmp_path, "many", 20) as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [[line for line in process.stdout if line != "working\n"] for process in (one, two)]
        assert (one.wait(), two.wait()) == (0, 0)
    assert len(said[0]) == len(said[1]) == 40
    assert sorted(paid(tmp_path), key=int) == [str(key) for key in range(40)]
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        assert journal.totals() == [RoundTotals(0, 40, 0, 0, 40, 40, 0.0)]


class Interrupted(sqlite3.Connection):
    """Once it has read the file's application id, another process tries to make the journal."""

    made_by_other: threading.Thread | None = None

    def execute(self, sql, *arguments):
        answer = super().execute(sql, *arguments)
        if sql == "PRAGMA application_id" and self.made_by_other is None:
            path = self.execute("PRAGMA database_list").fetchone()[2]
            Interrupted.made_by_other = threading.Thread(target=lambda: Journal(path).close())
            self.made_by_other.start()
            self.made_by_other.join(0.5)  # if it is kept waiting, it goes on later
        return answer


def test_a_journal_that_another_makes_while_it_is_looked_at_is_no_strangers(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda *arguments, **options: connect(
            *arguments, **options, factory=sqlite3.Connection if Interrupted.made_by_other else Interrupted
        ),
    )
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        Interrupted.made_by_other.join()
        assert journal.totals() == []


def killed_at_work(folder):
    with other(folder, "hang", 20) as process:
        assert process.stdout.readline() == "working\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def presences(folder) -> list[Path]:
    return [path for path in folder.iterdir() if "-worker-" in path.name]


LONG = 3600.0  # seconds of a lease that no test outlives


def test_the_trajectory_of_a_killed_process_is_free_at_once(tmp_path):
    killed_at_work(tmp_path)
    assert len(presences(tmp_path)) == 1
    work = Work()
    with contextlib.closing(Journal(tmp_path / "j", lease=LONG)) as journal:
        assert [line["status"] for line in exported(journal, tmp_path)] == ["cancelled"]
        assert asyncio.run(once(journal, work, "0")) == SAID
    assert work.calls == 1 and paid(tmp_path) == ["0"] and presences(tmp_path) == []


def test_who_waits_for_a_process_that_is_killed_meanwhile_learns_of_it_within_a_beat(tmp_path):
    work = Work()

    async def main(journal, process):
        waiting = asyncio.ensure_future(once(journal, work, "0"))
        await asyncio.sleep(1.2)  # several beats
        assert not waiting.done()
        os.kill(process.pid, signal.SIGKILL)
        return await waiting

    with other(tmp_path, "hang", 20) as process:
        assert process.stdout.readline() == "working\n"
        with contextlib.closing(Journal(tmp_path / "j", lease=1.0)) as journal:
            journal.lease = LONG  # it goes on showing its life, and never gives up on others
            assert asyncio.run(main(journal, process)) == SAID
    assert work.calls == 1


def test_a_killed_process_of_which_nothing_is_known_here_keeps_its_lease(tmp_path):
    """As one of an older version, or a journal that was copied from another machine."""
    killed_at_work(tmp_path)
    for path in presences(tmp_path):
        path.unlink()
    started, work = time.monotonic(), Work()
    with contextlib.closing(Journal(tmp_path / "j", lease=0.8)) as journal:
        assert [line["status"] for line in exported(journal, tmp_path)] == ["working"]
        assert asyncio.run(once(journal, work, "0")) == SAID
    assert work.calls == 1 and time.monotonic() - started >= 0.8


def test_living_processes_are_never_taken_for_dead_while_others_come_and_go(tmp_path):
    """Journals open, look for the dead and close beside one that works, in its process and in others."""
    with other(tmp_path, "hang", 20) as process:
        assert process.stdout.readline() == "working\n"
        with contextlib.closing(Journal(tmp_path / "j", lease=LONG)) as ours:

            async def main():
                release, slow = asyncio.Event(), Work()

                async def held():
                    slow.calls += 1
                    await release.wait()
                    return SAID

                mine = asyncio.ensure_future(once(ours, held, "mine"))
                while not slow.calls:
                    await asyncio.sleep(0.001)
                for _ in range(20):
                    with contextlib.closing(Journal(tmp_path / "j", lease=0.1)) as guest:
                        lines = {line["key"]: line["status"] for line in exported(guest, tmp_path)}
                        assert lines == {"0": "working", "mine": "working"}
                theirs = Work()
                also = asyncio.ensure_future(once(ours, theirs, "0"))
                await asyncio.sleep(0.5)
                assert not theirs.calls and not also.done()
                release.set()
                process.stdin.write("go on\n")
                process.stdin.flush()
                return slow.calls, theirs.calls, await mine, (await also).text

            assert asyncio.run(main()) == (1, 0, SAID, "0 by hang")
    assert paid(tmp_path) == ["0"]


def test_many_that_come_at_once_find_each_other_alive(tmp_path):
    """Between the making of a file and its locking another may take it for a dead one's."""
    seen = []

    def come():
        for _ in range(15):
            presence = Presence(tmp_path / "j")
            with presence.dead() as names:
                seen.extend(names)
            assert (tmp_path / f"j-worker-{presence.name}").exists()
            presence.close()

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert presences(tmp_path) == []


def test_files_of_other_names_are_left_alone(tmp_path):
    strange = [tmp_path / f"j-worker-{name}" for name in ("*", "0" * 31, "0" * 32 + ".bak")]
    for path in strange:
        path.touch()
    Journal(tmp_path / "j").close()
    assert sorted(presences(tmp_path)) == sorted(strange)


def test_a_living_process_keeps_its_lease_while_its_event_loop_is_blocked(tmp_path):
    """The heartbeat is the writing thread's."""
    with contextlib.closing(Journal(tmp_path / "j", lease=1.0)) as ours:

        async def blocked():
            started.set()
            time.sleep(2.0)
            return SAID

        started = threading.Event()
        worker = threading.Thread(target=lambda: asyncio.run(once(ours, blocked)))
        worker.start()
        started.wait()
        with contextlib.closing(Journal(tmp_path / "j", lease=1.0)) as theirs:
            work = Work(Completion("mine", "", 1, 1, "stop"))
            assert asyncio.run(once(theirs, work)) == SAID and not work.calls
        worker.join()


def test_a_process_that_stalled_beyond_its_lease_takes_the_result_that_was_first(tmp_path):
    with other(tmp_path, "stall", 20) as process:
        assert process.stdout.readline() == "working\n"
        os.kill(process.pid, signal.SIGSTOP)
        with contextlib.closing(Journal(tmp_path / "j", lease=0.2)) as journal:
            assert asyncio.run(once(journal, Work(), "0")) == SAID
            os.kill(process.pid, signal.SIGCONT)
            assert process.communicate("go on\n")[0] == SAID.text + "\n"
            # What it paid for in vain is not hidden.
            assert journal.totals() == [RoundTotals(0, 1, 1, 0, 7, 3, 0.25)]
            assert "was first" in exported(journal, tmp_path)[0]["losses"][0]["error"]


def test_what_was_returned_survives_kill_9(tmp_path):
    with other(tmp_path, "many", 20) as process:
        process.stdin.write("go\n")
        process.stdin.flush()
        said = (line for line in process.stdout if " by " in line)
        returned = {next(said).split()[0] for _ in range(5)}
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        finished = {line["key"]: line["text"] for line in exported(journal, tmp_path) if line["status"] == "finished"}
        assert returned <= set(finished)
        for key in returned:
            work = Work()
            assert asyncio.run(once(journal, work, key)).text == finished[key] and not work.calls
