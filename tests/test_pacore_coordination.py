"""The rounds: what each trajectory is asked, what ends them early, and what is counted."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_backend import ScriptedBackend, failing

from pacore.agreement import Adaptive
from pacore.backends import BackendError, Completion, Sampling
from pacore.coordination import Budget, PacoreError, Plan, PlanError, parse_rounds, solve
from pacore.journal import Journal

QUESTION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]},
]


def numbered(conversation, sampling, call):
    return f"Answer: {call}"


def run(backend, plan, conversation=QUESTION, **kwargs):
    return asyncio.run(solve(backend, conversation, plan, **kwargs))


@pytest.mark.parametrize(
    ("value", "rounds"), [("single", ()), ("low", (4,)), ("medium", (16,)), ("high", (32, 4)), ("16,4", (16, 4)),
                          ([8], (8,)), ((2, 2, 2), (2, 2, 2)), (" 5 ", (5,)), ("[16, 4]", (16, 4))],
)  # fmt: skip
def test_rounds_by_name_or_width(value, rounds):
    assert parse_rounds(value) == rounds


@pytest.mark.parametrize("value", ["", "max", "4,,4", "0", "-1", "4.5", [0], [True], ["4"], "2000", ",".join("1" * 20)])
def test_rounds_that_cannot_be(value):
    with pytest.raises(PlanError):
        parse_rounds(value)


@pytest.mark.parametrize(
    "values", [{"quorum": 0}, {"quorum": 1.1}, {"compaction": "most"}, {"template": "/none"}, {"rounds": (0,)}], ids=str
)
def test_a_plan_is_checked_before_anything_is_paid_for(values):
    with pytest.raises(PlanError):
        Plan(**values)


@pytest.mark.parametrize(
    "values", [{"tokens": 0}, {"seconds": -1}, {"money": 1}, {"money": 1, "prompt_price": -1}], ids=str
)
def test_a_budget_is_checked_too(values):
    with pytest.raises(PlanError):
        Budget(**values)


def test_rounds_run_in_parallel_and_each_reads_the_last_ones_messages():
    backend = ScriptedBackend(numbered, delay=lambda call: 0.01)
    outcome = run(backend, Plan((5, 2)))
    assert len(backend.calls) == 5 + 2 + 1 and backend.peak == 5
    texts = [backend.last_text(call) for call in range(8)]
    assert texts[:5] == ["What is 3 + 4?"] * 5
    for text in texts[5:7]:
        assert all(f"Answer: {i}" in text for i in range(5)) and "What is 3 + 4?" in text
    assert all(f"Answer: {i}" in texts[7] for i in (5, 6)) and "Answer: 0" not in texts[7]
    assert outcome.answer.text == "Answer: 7" and [len(r) for r in outcome.rounds] == [5, 2, 1]
    assert all(conversation[0] == QUESTION[0] for conversation, _ in backend.calls)
    assert outcome.completion_tokens == 2 * 8
    assert outcome.prompt_tokens == sum(backend.count_tokens(text) for text in texts)
    assert not outcome.notes and not outcome.failures


def test_seeds_and_message_order_do_not_depend_on_who_came_first():
    def say(conversation, sampling, call):
        return f"Answer: {sampling.seed}"

    def prompts(delay):
        backend = ScriptedBackend(say, delay)
        run(backend, Plan((6, 3), seed=5))
        return backend.last_text(len(backend.calls) - 1), sorted(s.seed for _, s in backend.calls)

    assert prompts(lambda call: 0) == prompts(lambda call: 0.002 * (5 - call % 6))
    assert prompts(lambda call: 0) != (lambda b: (run(b, Plan((6, 3), seed=6)), b.last_text(9))[1])(
        ScriptedBackend(say)
    )


def test_a_single_trajectory_is_the_question_unchanged():
    backend = ScriptedBackend(numbered)
    outcome = run(backend, Plan(parse_rounds("single"), sampling=Sampling(temperature=0.3, max_tokens=9)))
    assert [c for c, _ in backend.calls] == [QUESTION] and outcome.answer.text == "Answer: 0"
    assert backend.calls[0][1].temperature == 0.3 and backend.calls[0][1].max_tokens == 9


def test_a_failed_trajectory_is_a_failure_and_never_an_empty_message():
    backend = ScriptedBackend(lambda c, s, call: failing() if call in (1, 3) else numbered(c, s, call))
    outcome = run(backend, Plan((5,)))
    assert outcome.failures == 2 and "2 of 5 failed, the first: the server is on fire" in outcome.notes[0]
    assert [t.error for t in outcome.rounds[0]] == ["", "the server is on fire", "", "the server is on fire", ""]
    prompt = backend.last_text(5)
    assert "Attempt 3" in prompt and "Attempt 4" not in prompt


def test_a_round_fails_only_under_its_quorum():
    def some(fail):
        return ScriptedBackend(lambda c, s, call: failing() if call < fail else numbered(c, s, call))

    assert run(some(3), Plan((4,))).failures == 3
    with pytest.raises(PacoreError, match="0 of the 1 trajectories it needs; 4 of 4 failed, the first: the server is"):
        run(some(4), Plan((4,)))
    assert run(some(1), Plan((4,), quorum=0.75)).failures == 1
    with pytest.raises(PacoreError, match="needs"):
        run(some(2), Plan((4,), quorum=0.75))


def test_an_error_that_all_share_ends_the_round_at_once():
    backend = ScriptedBackend(
        lambda c, s, call: failing("no such model", fatal=True), delay=lambda call: 0.0 if call == 0 else 30
    )
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"^no such model$") as caught:  # nor would any other question be answered
        run(backend, Plan((8,)))
    assert caught.value.fatal
    assert time.monotonic() - start < 5 and backend.cancelled == 7


def test_quorum_goes_on_and_cancels_the_rest():
    backend = ScriptedBackend(numbered, delay=lambda call: 30 if call in (2, 5) else 0)
    outcome = run(backend, Plan((8,), quorum=6 / 8))
    assert backend.cancelled == 2 and outcome.seconds < 5
    assert [t.index for t in outcome.rounds[0] if t.cancelled] == [2, 5]
    assert outcome.notes == ("round 1: went on with 6 of 8.",) and not outcome.failures


def test_adaptive_breadth_stops_when_answers_agree_and_widens_when_not():
    agreeing = ScriptedBackend(lambda c, s, call: "Answer: 7")
    outcome = run(agreeing, Plan((32,), adaptive=Adaptive(start=4, step=4)))
    assert len(agreeing.calls) == 4 + 1 and outcome.notes == ("round 1: 4 of 32 agreed.",)
    split = ScriptedBackend(lambda c, s, call: f"Answer: {call % 2}")
    run(split, Plan((10,), adaptive=Adaptive(start=4, step=4)))
    assert len(split.calls) == 10 + 1


def test_a_budget_of_seconds_ends_with_the_best_so_far():
    backend = ScriptedBackend(
        lambda c, s, call: f"Answer: {7 if call % 2 else 8 + call}", delay=lambda call: 30 if call >= 6 else 0
    )
    outcome = run(backend, Plan((6, 2), budget=Budget(seconds=0.3)))
    assert outcome.answer.text == "Answer: 7" and backend.cancelled == 2 and 0.3 <= outcome.seconds < 5
    assert "the budget ended the run (0.3" in outcome.notes[-1] and "commonest of round 1" in outcome.notes[-1]
    with pytest.raises(PacoreError, match="before any trajectory was in"):
        run(ScriptedBackend(numbered, delay=lambda call: 30), Plan((2,), budget=Budget(seconds=0.05)))


def test_a_budget_of_tokens_or_money_cancels_what_is_left_of_the_round():
    for budget in (Budget(tokens=30), Budget(money=30e-6, prompt_price=1, completion_price=1)):
        backend = ScriptedBackend(numbered, delay=lambda call: 0.02 * call)
        outcome = run(backend, Plan((16,), budget=budget))
        used = outcome.prompt_tokens + outcome.completion_tokens
        assert 30 <= used <= 40 and backend.cancelled > 8 and outcome.answer.text == "Answer: 0"


def test_messages_are_trimmed_to_the_context_and_it_is_said():
    backend = ScriptedBackend(lambda c, s, call: "long " * 100 + f"Answer: {call}", context=400)
    outcome = run(backend, Plan((8,), sampling=Sampling(max_tokens=100)))
    assert outcome.notes == ("round 2: 8 of 8 messages were trimmed to fit.",)
    assert backend.count_tokens(backend.last_text(8)) <= 300
    assert all(f"Answer: {i}" in backend.last_text(8) for i in range(8)), "a message keeps its end"
    with pytest.raises(PlanError, match="fewer trajectories"):
        run(ScriptedBackend(backend.say, context=150), Plan((16,), sampling=Sampling(max_tokens=100)))


def test_messages_are_trimmed_by_what_they_really_took_where_the_estimate_falls_short():
    def dense(conversation, sampling, call):  # three tokens a word
        return Completion("1 + 1 = 2 " * 20, "", 5, 300, "stop")

    backend = ScriptedBackend(dense, context=1200)
    outcome = run(backend, Plan((4,), sampling=Sampling(max_tokens=100)))
    assert outcome.notes == ("round 2: 4 of 4 messages were trimmed to fit.",)
    assert 300 < 3 * backend.count_tokens(backend.last_text(4)) <= 1100


def test_only_a_listener_has_the_answer_streamed():
    heard = []

    class Listening(ScriptedBackend):
        async def complete(self, conversation, sampling, on_text=None):
            heard.append(on_text is not None)
            return await super().complete(conversation, sampling, on_text)

    backend = Listening(lambda c, s, call: "Answer: 4")
    run(backend, Plan((1,)))
    run(backend, Plan((1,)), on_event=lambda event: None, stream=False)
    run(backend, Plan((1,)), on_event=lambda event: None)
    assert heard == [False, False, False, False, False, True]


def test_compactions():
    def thinking(conversation, sampling, call):
        return Completion(f"Answer: {call}", "one two three four", 5, 6, "stop")

    backend = ScriptedBackend(thinking)
    run(backend, Plan((2,), compaction="tail:3"))
    assert "four\nAnswer: 0" in backend.last_text(2) and "three" not in backend.last_text(2)

    def say(conversation, sampling, call):
        return "in short: 7" if "in a few sentences" in backend.last_text(call) else thinking(0, 0, call)

    backend = ScriptedBackend(say)
    outcome = run(backend, Plan((2,), compaction="summary"))
    assert len(backend.calls) == 2 + 2 + 1 and backend.last_text(4).count("in short: 7") == 2
    assert outcome.completion_tokens == 6 * 3 + 3 * 2, "a summary costs, and counts"


@pytest.mark.parametrize(
    "conversation", [[], [{"role": "assistant", "content": "hi"}], [{"role": "user", "content": "  "}],
                     [{"role": "user", "content": []}]], ids=str,
)  # fmt: skip
def test_a_conversation_without_a_question(conversation):
    with pytest.raises(PlanError):
        run(ScriptedBackend(numbered), Plan(), conversation)


def test_events_tell_the_whole_story_in_order():
    events = []
    outcome = run(ScriptedBackend(numbered), Plan((3, 2)), on_event=events.append)
    assert [(e.round, e.width) for e in events if e.kind == "round"] == [(0, 3), (1, 2), (2, 1)]
    assert len([e for e in events if e.kind == "trajectory"]) == 6
    assert [e.piece for e in events if e.kind == "text"] == ["Answer: 5"]
    assert events[-1].kind == "outcome" and events[-1].outcome is outcome


def test_cancelling_the_run_cancels_every_trajectory():
    backend = ScriptedBackend(numbered, delay=lambda call: 30)

    async def go():
        task = asyncio.create_task(solve(backend, QUESTION, Plan((6,))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert backend.cancelled == 6 and backend.running == 0


def test_a_journal_pays_once(tmp_path):
    journal = Journal(tmp_path / "j.sqlite")
    first = ScriptedBackend(lambda c, s, call: failing() if call == 2 else f"Answer: {s.seed % 5}")
    a = run(first, Plan((4,)), problem="p", journal=journal)
    second = ScriptedBackend(lambda c, s, call: f"Answer: {s.seed % 5}")
    b = run(second, Plan((4,)), problem="p", journal=journal)
    # The one that failed is tried again; the synthesis sees another message, so it is another call.
    assert len(first.calls) == 5 and len(second.calls) == 2
    third = ScriptedBackend(numbered)
    c = run(third, Plan((4,)), problem="p", journal=journal)
    assert not third.calls and c.answer == b.answer and c.completion_tokens == b.completion_tokens
    assert a.failures == 1 and not b.failures
    totals = journal.totals("p")
    assert [(t.finished, t.failed) for t in totals] == [(4, 1), (2, 0)]
    other = ScriptedBackend(numbered)
    run(other, Plan((4,), sampling=Sampling(temperature=0.5)), problem="p", journal=journal)
    assert len(other.calls) == 5, "another temperature is another trajectory"
    journal.close()


KILLED = """
import asyncio, os, sys
sys.path[:0] = {paths!r}
from scripted_backend import ScriptedBackend
from pacore.coordination import Plan, solve
from pacore.journal import Journal

def say(conversation, sampling, call):
    with open(sys.argv[2], "a") as log:
        log.write("call\\n")
    if os.path.getsize(sys.argv[2]) >= 5 * int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return f"Answer: {{sampling.seed % 9}}"

backend = ScriptedBackend(say, delay=lambda call: 0.02 * call)
question = [{{"role": "user", "content": "What is 3 + 4?"}}]
journal = Journal(sys.argv[1], lease=1.0)
print(asyncio.run(solve(backend, question, Plan((8, 3)), problem="p", journal=journal)).answer.text)
"""


def test_a_killed_run_resumes_and_pays_only_for_what_was_in_flight(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(paths=[str(here), str(here.parent)]))

    def go(kill_at):
        arguments = [sys.executable, str(script), str(tmp_path / "j.sqlite"), str(tmp_path / "log"), str(kill_at)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120)

    assert go(6).returncode == -9
    done = go(10**6)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text().count("call")
    assert calls == (8 + 3 + 1) + 1, (
        "the call that was answered by the kill was not recorded; all others were paid once"
    )
    assert done.stdout.startswith("Answer:")
