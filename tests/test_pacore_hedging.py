"""The second call beside a final one that takes long: when it begins, which of the two counts, and what it costs."""

import asyncio
import time

import pytest
from scripted_backend import ScriptedBackend, failing

from pacore.coordination import PacoreError, Plan, PlanError, solve
from pacore.journal import Journal

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
HEDGED = Plan((4,), hedge=3)


def numbered(conversation, sampling, call):
    return f"Answer: {call}"


def slow_final(seconds, second=0.0, say=numbered):
    """Four calls of 0.05 s, then a final one that takes `seconds`, then one of `second` seconds."""
    return ScriptedBackend(say, delay=lambda call: 0.05 if call < 4 else seconds if call == 4 else second)


def run(backend, plan=HEDGED, **options):
    return asyncio.run(solve(backend, QUESTION, plan, **options))


@pytest.mark.parametrize("hedge", [0.5, 0, -1, float("nan"), float("inf")])
def test_a_hedge_below_one_or_without_end_is_refused(hedge):
    with pytest.raises(PlanError, match="hedge"):
        Plan(hedge=hedge)


def test_a_final_call_that_takes_long_gets_a_second_one_and_is_cancelled():
    backend, events = slow_final(30), []
    started = time.monotonic()
    outcome = run(backend, on_event=events.append)
    assert outcome.answer.text == "Answer: 5" and time.monotonic() - started < 10
    assert backend.cancelled == 1 and backend.running == 0
    first, second = backend.calls[4:]
    assert first[0] == second[0] and first[1].seed != second[1].seed
    # It is one trajectory still, with the seed of the call that gave it.
    assert [len(trajectories) for trajectories in outcome.rounds] == [4, 1]
    assert outcome.rounds[-1][0].seed == second[1].seed and outcome.completion_tokens == 2 * 5
    assert "a second call began after 0." in outcome.notes[0]
    assert [event.piece for event in events if event.kind == "text"] == ["Answer: 5"]


def test_one_that_is_as_quick_as_the_round_before_it_stays_alone():
    backend = slow_final(0.05)
    assert run(backend).answer.text == "Answer: 4" and len(backend.calls) == 5


def test_without_a_hedge_or_a_round_before_there_is_one_call():
    backend = slow_final(0.5)
    assert run(backend, Plan((4,))).answer.text == "Answer: 4" and len(backend.calls) == 5
    alone = ScriptedBackend(numbered, delay=lambda call: 0.3)
    assert run(alone, Plan((), hedge=1)).answer.text == "Answer: 0" and len(alone.calls) == 1


def test_the_first_call_may_still_be_first():
    backend = slow_final(0.6, second=30)
    assert run(backend).answer.text == "Answer: 4"
    assert len(backend.calls) == 6 and backend.cancelled == 1


def test_the_wait_for_a_place_is_no_reason_for_a_second_call():
    """Where the round had to queue, the final call may too."""

    class Queueing(ScriptedBackend):
        async def complete(self, *arguments):
            self.places = getattr(self, "places", None) or asyncio.Semaphore(1)
            async with self.places:
                return await super().complete(*arguments)

    async def go():
        backend = Queueing(numbered, delay=lambda call: 0.05)
        others = [asyncio.create_task(backend.complete(QUESTION, HEDGED.sampling)) for _ in range(4)]
        outcome = await solve(backend, QUESTION, HEDGED)
        await asyncio.gather(*others)
        return backend, outcome

    backend, outcome = asyncio.run(go())
    assert len(backend.calls) == 4 + 5 and not outcome.notes


@pytest.mark.parametrize(("fails", "answer"), [((4,), "Answer: 5"), ((5,), "Answer: 4")])
def test_one_that_fails_leaves_it_to_the_other(fails, answer):
    def say(conversation, sampling, call):
        return failing() if call in fails else numbered(conversation, sampling, call)

    # Either fails while the other is on its way.
    assert run(slow_final(0.6, 0.3 if fails == (5,) else 0.8, say)).answer.text == answer


def test_an_error_before_the_second_or_of_both_is_the_first_ones():
    def say(conversation, sampling, call):
        return failing(f"call {call} failed") if call >= 4 else "Answer: 7"

    early, late = slow_final(0.0, say=say), slow_final(0.6, 0.3, say)
    for backend, calls in ((early, 5), (late, 6)):
        with pytest.raises(PacoreError, match="call 4 failed"):
            run(backend)
        assert len(backend.calls) == calls


def test_the_journal_has_both_and_the_second_is_not_paid_for_again(tmp_path):
    journal = Journal(tmp_path / "j")
    first = slow_final(30)
    outcome = run(first, problem="p", journal=journal)
    totals = journal.totals("p")
    assert [(total.finished, total.cancelled) for total in totals] == [(4, 0), (1, 1)]
    again = ScriptedBackend(numbered)
    repeated = run(again, problem="p", journal=journal)
    assert not again.calls and repeated.answer == outcome.answer
    assert repeated.rounds[-1][0].seed == outcome.rounds[-1][0].seed
    journal.close()


def test_cancelling_the_run_cancels_both():
    backend = slow_final(30, second=30)

    async def go():
        task = asyncio.create_task(solve(backend, QUESTION, HEDGED))
        while len(backend.calls) < 6:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert backend.cancelled == 2 and backend.running == 0


def test_a_listener_hears_one_voice():
    """The call that speaks first is heard; of the other only the outcome tells."""

    class Speaking(ScriptedBackend):
        async def complete(self, conversation, sampling, on_text=None):
            if on_text and len(self.calls) == 4:
                on_text("text", "Let me")
            return await super().complete(conversation, sampling, on_text)

    backend = Speaking(numbered, delay=lambda call: 0.05 if call < 4 else 30 if call == 4 else 0.0)
    events = []
    outcome = run(backend, on_event=events.append)
    assert [event.piece for event in events if event.kind == "text"] == ["Let me"]
    assert outcome.answer.text == "Answer: 5"
