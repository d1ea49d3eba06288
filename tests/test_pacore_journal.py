"""The journal: recorded before it counts, paid once, added up, exported, and told apart by its keys."""

import asyncio
import base64
import contextlib
import os
import sqlite3
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import SAID, Work, exported, once
from PIL import Image

from pacore.backends import BackendError, Completion, Sampling
from pacore.journal import Journal, JournalError, RoundTotals, trajectory_key


@pytest.fixture
def journal(tmp_path):
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        yield journal


# Once


def test_a_recorded_trajectory_is_never_paid_again(tmp_path):
    work = Work()
    for _ in range(2):
        with contextlib.closing(Journal(tmp_path / "j")) as journal:
            assert asyncio.run(once(journal, work)) == SAID
            assert asyncio.run(once(journal, work)) == SAID
    assert work.calls == 1


ANY_TEXT = st.text(alphabet=st.characters(), max_size=20)  # with halves of surrogate pairs, as broken servers send them
COMPLETIONS = st.builds(
    Completion,
    text=ANY_TEXT,
    reasoning=ANY_TEXT,
    prompt_tokens=st.integers(0, 2**40),
    completion_tokens=st.integers(0, 2**40),
    finish=st.sampled_from(["stop", "length"]),
    logprobs=st.none() | st.lists(st.floats(max_value=0.0, allow_nan=False), max_size=4).map(tuple),
    seconds=st.floats(0, 1e6),
    attempts=st.integers(1, 9),
)


def test_whatever_was_said_is_read_back_to_the_last_bit(tmp_path):
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        keys = iter(range(10**6))

        @given(said=COMPLETIONS, problem=ANY_TEXT)
        def check(said, problem):
            key = str(next(keys))

            async def main():
                assert await once(journal, Work(said), key, problem) == said
                assert await once(journal, Work(SAID), key, problem) == said

            asyncio.run(main())
            assert sum(total.finished for total in journal.totals(problem)) >= 1

        check()
        assert journal.totals()[0].finished == next(keys)


def test_tasks_that_want_the_same_trajectory_pay_once(journal):
    work = Work(seconds=0.05)

    async def main():
        return await asyncio.gather(*(once(journal, work) for _ in range(20)))

    assert asyncio.run(main()) == [SAID] * 20 and work.calls == 1


def test_a_failure_is_kept_and_a_later_call_tries_again(journal, tmp_path):
    failing = Work(BackendError("the server\nfailed", attempts=6))
    with pytest.raises(BackendError) as caught:
        asyncio.run(once(journal, failing))
    assert caught.value is failing.said
    assert exported(journal, tmp_path)[0]["status"] == "failed"
    with pytest.raises(ZeroDivisionError):
        asyncio.run(once(journal, Work(ZeroDivisionError("no"))))
    assert asyncio.run(once(journal, Work())) == SAID
    (line,) = exported(journal, tmp_path)
    assert line["status"] == "finished" and line["losses"] == [
        {"status": "failed", "attempts": 6, "error": "the server failed"},
        {"status": "failed", "attempts": 0, "error": "no"},
    ]
    assert journal.totals() == [RoundTotals(0, 1, 2, 0, 7, 3, 0.25)]


def test_those_who_wait_for_one_that_fails_try_themselves(journal):
    async def main():
        failing, work = Work(BackendError("no"), seconds=0.03), Work()
        first = asyncio.ensure_future(once(journal, failing))
        while not failing.calls:
            await asyncio.sleep(0.001)
        done = await asyncio.gather(first, once(journal, work), once(journal, work), return_exceptions=True)
        assert done[0] is failing.said and done[1:] == [SAID, SAID] and work.calls == 1

    asyncio.run(main())


def test_a_cancelled_one_is_free_at_once(journal, tmp_path):
    async def main():
        slow = Work(seconds=60)
        task = asyncio.ensure_future(once(journal, slow))
        while not slow.calls:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [line["status"] for line in exported(journal, tmp_path)] == ["cancelled"]
        assert await once(journal, Work()) == SAID  # long before the lease ends

    asyncio.run(main())
    assert journal.totals() == [RoundTotals(0, 1, 0, 1, 7, 3, 0.25)]


def test_whenever_it_is_cancelled_nothing_stays_claimed_and_what_was_paid_is_kept(journal):
    async def main():
        for steps in range(12):
            work = Work()
            task = asyncio.ensure_future(once(journal, work, key := str(steps)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await asyncio.wait_for(once(journal, work, key), 10) == SAID
            assert work.calls <= 2

    asyncio.run(main())
    assert journal.totals()[0].finished == 12


def test_what_was_paid_is_kept_though_the_caller_is_cancelled_while_it_is_written(journal):
    async def main():
        async def work():
            asyncio.get_running_loop().call_soon(task.cancel)
            return SAID

        task = asyncio.ensure_future(once(journal, work))
        with contextlib.suppress(asyncio.CancelledError):
            await task
        again = Work()
        assert await once(journal, again) == SAID and not again.calls

    asyncio.run(main())
    assert journal.totals() == [RoundTotals(0, 1, 0, 0, 7, 3, 0.25)]


def test_a_completion_that_cannot_be_written_is_an_error_and_leaves_the_others_alone(journal):
    async def main():
        absurd = Completion("4", "", 2**80, 1, "stop")
        works = [Work(absurd), *(Work() for _ in range(5))]
        done = await asyncio.gather(
            *(once(journal, work, str(index)) for index, work in enumerate(works)), return_exceptions=True
        )
        assert isinstance(done[0], OverflowError) and done[1:] == [SAID] * 5
        assert await asyncio.wait_for(once(journal, Work(), "0"), 10) == SAID

    asyncio.run(main())


# Sums and lines


def test_totals_add_up_per_round_and_problem(journal):
    async def main():
        for problem, round, index in [("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("b", 0, 0)]:
            await once(journal, Work(), f"{problem}{round}{index}", problem, round, index)
        with contextlib.suppress(BackendError):
            await once(journal, Work(BackendError("no")), "lost", "a", 1, 1)

    asyncio.run(main())
    assert journal.totals("a") == [RoundTotals(0, 2, 0, 0, 14, 6, 0.5), RoundTotals(1, 1, 1, 0, 7, 3, 0.25)]
    assert journal.totals() == [RoundTotals(0, 3, 0, 0, 21, 9, 0.75), RoundTotals(1, 1, 1, 0, 7, 3, 0.25)]
    assert journal.totals("c") == []


def test_the_export_is_a_line_a_trajectory_in_order(journal, tmp_path):
    async def main():
        for problem, round, index in [("b", 0, 0), ("a", 1, 0), ("a", 0, 1), ("a", 0, 0)]:
            await once(
                journal,
                Work(Completion("vier: 四", "", 7, 3, "stop")),
                f"{problem}{round}{index}",
                problem,
                round,
                index,
            )

    asyncio.run(main())
    lines = exported(journal, tmp_path)
    assert [line["key"] for line in lines] == ["a00", "a01", "a10", "b00"]
    assert lines[1] == {
        "key": "a01",
        "problem": "a",
        "round": 0,
        "index": 1,
        "status": "finished",
        "text": "vier: 四",
        "reasoning": "",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "finish": "stop",
        "logprobs": None,
        "seconds": 0.0,
        "attempts": 1,
        "losses": [],
    }
    assert "四" in (tmp_path / "out.jsonl").read_text("utf-8")


def test_an_export_that_fails_leaves_the_old_file_and_no_other(journal, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jsonl").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="No space left"):
        journal.export(out / "a.jsonl")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a.jsonl", "old")]
    for path in (tmp_path / "none" / "a.jsonl", out / "a.jsonl" / "b.jsonl"):
        with pytest.raises(JournalError, match="cannot be written"):
            journal.export(path)


def test_memory_stays_flat_over_thousands_of_trajectories(journal, tmp_path):
    async def main():
        said = Completion("x" * 8000, "", 1, 1, "stop")
        slots = asyncio.Semaphore(64)

        async def one(index):
            async with slots:
                await once(journal, Work(said), str(index), index=index)

        for start in range(0, 1500, 250):
            await asyncio.gather(*(one(index) for index in range(start, start + 250)))

    tracemalloc.start()
    asyncio.run(main())
    assert journal.export(tmp_path / "out.jsonl") == 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.jsonl").stat().st_size > 12e6 and peak < 4e6


# What cannot be opened


def test_what_is_no_journal_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("my notes, which are longer than the header of a database is")
    foreign = sqlite3.connect(tmp_path / "foreign")
    foreign.execute("CREATE TABLE mine (x)")
    foreign.close()
    Journal(tmp_path / "newer").close()
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for name, words in [
        ("none/j", "check the path"),
        ("", "check the path"),
        ("notes.txt", "no journal"),
        ("foreign", "another program's database"),
        ("newer", "form 99"),
    ]:
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(JournalError, match=words) as caught:
            Journal(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        assert before is None or (tmp_path / name).read_bytes() == before


def test_a_closed_journal_says_so(tmp_path):
    journal = Journal(tmp_path / "j")
    asyncio.run(once(journal, Work()))
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        asyncio.run(once(journal, Work(), "new"))
    with pytest.raises(JournalError, match="closed"):
        journal.totals()


# Keys

PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=3)}), max_size=2)
TURNS = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=3) | PARTS})
DRAWN = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 0.0, 1, 1.0, 0.7]),
    top_p=st.sampled_from([1, 1.0, 0.9]),
    top_k=st.integers(0, 2),
    max_tokens=st.none() | st.integers(1, 2),
    stop=st.lists(st.text(min_size=1, max_size=2), max_size=2).map(tuple),
    seed=st.none() | st.integers(0, 2),
)
PLACES = st.fixed_dictionaries(
    {
        "backend": st.sampled_from(["", "a", "b"]),
        "problem": st.text(max_size=1),
        "round": st.integers(0, 1),
        "index": st.integers(0, 1),
    }
)
CASES = st.tuples(st.lists(TURNS, max_size=2), DRAWN, PLACES)


def meaning(case):
    """What two equal keys must share: text as a string and as its only part are the same."""
    conversation, sampling, place = case
    turns = [
        (turn["role"], [turn["content"]] if isinstance(turn["content"], str) else [p["text"] for p in turn["content"]])
        for turn in conversation
    ]
    return turns, sampling, place


@given(CASES, CASES)
def test_keys_are_equal_where_the_trajectories_are(one, two):
    keys = [trajectory_key(conversation, sampling, **place) for conversation, sampling, place in (one, two)]
    assert (keys[0] == keys[1]) == (meaning(one) == meaning(two))
    assert len(keys[0]) == 64 and int(keys[0], 16) >= 0


def test_keys_know_a_picture_by_its_bytes(tmp_path):
    def key(picture):
        turns = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]
        return trajectory_key(turns, Sampling(), backend="b", problem="p", round=0, index=0)

    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.png")
    red.save(tmp_path / "b.png")
    address = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    same = {key(str(tmp_path / "a.png")), key(tmp_path / "b.png"), key(address)}
    assert len(same) == 1
    blue.save(tmp_path / "b.png")
    assert key(tmp_path / "b.png") not in same
    assert key(red) == key(red.copy()) != key(blue) != key(Image.new("RGB", (4, 16), "blue"))
    # The backend will say what is wrong with these.
    assert len({key(tmp_path / "none.png"), key("data:image/png;base64,!"), key("https://example.org/a.png")}) == 3
