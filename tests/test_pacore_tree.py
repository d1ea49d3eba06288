"""The tree of rounds: a pure function of a run's events; and the run that is followed while it goes on."""

import asyncio
import html
import threading
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_backend import ScriptedBackend, failing

from pacore.agreement import Adaptive
from pacore.backends import BackendError, Completion
from pacore.coordination import Event, Plan, Trajectory, solve
from pacore.following import follow
from pacore.tree import CSS, answer_so_far, headline, tree_html

QUESTION = [{"role": "user", "content": "How many?"}]
HOSTILE = "</pre></details><script>hack()</script><img src=x onerror='hack()'> `${hack()}` {{ hack() }} &amp;"


class Page(HTMLParser):
    """The elements and texts of a tree, and whether all are closed in their order."""

    VOID = ("img", "br", "input")

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def states(self, of: str) -> list[str]:
        return [a["data-state"] for _, a in self.elements if of in a.get("class", "").split()]


def events_of(say, plan, delay=lambda call: 0.0) -> list[Event]:
    events = []
    asyncio.run(solve(ScriptedBackend(say, delay), QUESTION, plan, on_event=events.append))
    return events


def done(round, index, message, reasoning="", finish="stop") -> Event:
    completion = Completion(message, reasoning, 10, 20, finish)
    return Event("trajectory", round, index, trajectory=Trajectory(round, index, 7, completion, message))


def begun(width: int, started: int | None = None) -> list[Event]:
    return [Event("round", 0, width=width), *(Event("start", 0, index) for index in range(started or width))]


# The tree


def test_it_grows_from_waiting_rounds_to_the_answer():
    events = events_of(lambda conversation, sampling, call: f"Because.\nAnswer: {call // 4}", Plan((3, 2)))
    seen = []
    for count in range(len(events) + 1):
        page = Page(tree_html(events[:count], (3, 2), seconds=0.0))
        seen.append((page.states("pacore-round"), page.states("pacore-one")))
    assert seen[0] == (["waiting"] * 3, [])
    assert (["running", "waiting", "waiting"], ["done", "running", "running"]) in seen
    assert (["done", "running", "waiting"], ["done"] * 3 + ["running"] * 2) in seen
    assert seen[-1] == (["done"] * 3, ["done"] * 6)
    assert any("running" in states for states, _ in seen[:-1])


def test_conclusions_are_readable_short_and_whole():
    events = [*begun(1), done(0, 0, "One, two.\nAnswer: 2\n```", reasoning="I see\n  two.", finish="length")]
    page = Page(tree_html(events, (1,), seconds=0.0))
    assert "Answer: 2" in page.texts, "the line with the answer, on the card"
    assert {"One, two.\nAnswer: 2\n```", "I see\n  two.", "20 tokens, seed 7, cut off at its limit"} <= set(page.texts)
    assert ("details", {"id": "pacore-0-0"}) in page.elements


@pytest.mark.parametrize("message", ["", " \n", "???"])
def test_a_conclusion_without_words_is_still_a_card(message):
    page = Page(tree_html([*begun(1), done(0, 0, message)], (1,), seconds=0.0))
    assert (message.strip() or "(nothing)") in page.texts


def test_agreement_is_counted_and_marked():
    answers = ["Answer: 8", "So the answer is **8**.", "\\boxed{8}", "Answer: 6"]
    page = Page(tree_html([*begun(4), *(done(0, i, a) for i, a in enumerate(answers))], (4,), seconds=0.0))
    assert "3 of 4 agree: 8" in page.texts
    assert sum("data-agrees" in attributes for _, attributes in page.elements) == 3
    page = Page(tree_html([*begun(2), done(0, 0, "Answer: 1"), done(0, 1, "Answer: 2")], (2,), seconds=0.0))
    assert "2 of 2 in, all differ" in page.texts and not any(
        "data-agrees" in attributes for _, attributes in page.elements
    )


def test_failed_and_cancelled_ones_say_so():
    def say(conversation, sampling, call):
        return failing("the server is on fire") if call == 1 else "Answer: 1"

    events = events_of(say, Plan((4,), quorum=0.5), delay=lambda call: 3600.0 if call == 3 else 0.0)
    page = Page(tree_html(events, (4,), seconds=0.0))
    assert page.states("pacore-one") == ["done", "failed", "done", "cancelled", "done"]
    assert "failed: the server is on fire" in page.texts and "2 of 4 in, 1 failed, 1 cancelled" in page.texts
    assert any("round 1: 1 of 4 failed" in text for text in page.texts), "notes stand below"


def test_what_has_not_begun_waits_and_is_gone_once_nobody_needs_it():
    some = [*begun(12, started=4), done(0, 0, "Answer: 1")]
    page = Page(tree_html(some, (12,), seconds=0.0))
    assert page.states("pacore-one") == ["done"] + ["running"] * 3 + ["waiting"] * 8
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan((12,), adaptive=Adaptive()))
    page = Page(tree_html(events, (12,), seconds=0.0))
    assert page.states("pacore-one") == ["done"] * 5 and "4 of 12 in" in page.texts


def test_a_run_that_was_stopped_runs_no_more():
    events = [*begun(3), done(0, 1, "Answer: 1")]
    page = Page(tree_html(events, (3, 2), seconds=2.0, over=True))
    assert page.states("pacore-one") == ["cancelled", "done", "cancelled"]
    assert page.states("pacore-round") == ["done", "waiting", "waiting"]
    assert Page(tree_html(begun(3), (3,), seconds=2.0, over=True)).states("pacore-round") == ["failed", "waiting"]


def test_the_cost_adds_up():
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan((3,), compaction="summary"))
    outcome = events[-1].outcome
    texts = Page(tree_html(events, (3,), seconds=99.0)).texts
    prompt, completion = f"{outcome.prompt_tokens:,} prompt", f"{outcome.completion_tokens:,} completion tokens"
    assert f"4 trajectories, {prompt} and {completion}, {outcome.seconds:.1f} s" in texts
    # While it runs they are those of what is in.
    assert "1 trajectory, 10 prompt and 20 completion tokens, 2 s" in Page(
        tree_html([*begun(3), done(0, 0, "x")], (3,), seconds=2.2)
    ).texts  # fmt: skip


def test_a_single_answer_is_a_tree_of_one():
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan(()))
    page = Page(tree_html(events, (), seconds=0.0))
    assert page.states("pacore-round") == ["done"] and "Answer" in page.texts
    assert headline(events[:1], ()) == "Writing the answer"


def test_the_headline_follows_the_rounds():
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan((3,)))
    heard = [headline(events[:count], (3,)) for count in range(len(events))]
    begins = [f"Round 1 of 1: {n} of 3 conclusions are in" for n in range(4)]
    assert list(dict.fromkeys(heard)) == ["Beginning", *begins, "Writing the answer"]


def test_the_final_rounds_words_are_put_together():
    pieces = [("reasoning", "\nI "), ("reasoning", "see.\n"), ("text", "\nAnswer"), ("text", ": 1\n")]
    events = [*begun(1), *(Event("text", 1, 0, piece=piece, channel=channel) for channel, piece in pieces)]
    assert answer_so_far(events) == ("I see.", "Answer: 1") and answer_so_far([]) == ("", "")


def skeleton(source: str) -> list[tuple[str, dict]]:
    return Page(source).elements


@given(st.one_of(st.just(HOSTILE), st.text(alphabet="<>&\"'`${}/= \nabpre-", min_size=1, max_size=40)))
def test_what_a_model_says_is_text_and_never_markup(said):
    def tree(text):
        error = Trajectory(0, 1, 7, None, error=text)
        whole = [*begun(2), done(0, 0, text, reasoning=text or "."), Event("trajectory", 0, 1, trajectory=error)]
        return tree_html(whole, (2,), seconds=0.0)

    source = tree(said)
    assert skeleton(source) == skeleton(tree("plain"))
    if said.strip():
        assert source.count(html.escape(said).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) >= 2


def test_the_same_events_give_the_same_page():
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan((3,)))
    assert tree_html(events, (3,), seconds=1.0) == tree_html(tuple(events), [3], seconds=2.0), (
        "the outcome has the time"
    )


def test_every_class_has_its_style_and_every_style_its_class():
    events = events_of(lambda conversation, sampling, call: "Answer: 1", Plan((3,)))
    used = {name for _, a in skeleton(tree_html(events, (3,), 0.0)) for name in a.get("class", "").split()}
    assert {name for name in used if f".{name}" not in CSS} == set()


# The run, followed


def test_a_run_is_followed_to_its_end():
    async def go():
        backend = ScriptedBackend(lambda conversation, sampling, call: "Answer: 1", lambda call: 0.05)
        return [x async for x in follow(backend, QUESTION, Plan((2,)), threading.Event(), lambda: 0.01)]

    seen = asyncio.run(go())
    lengths = [len(events) for events, _ in seen]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1], "each list stays as it was given"
    assert [over for _, over in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1][0][-1].kind == "outcome"


def test_a_stop_ends_it_though_nobody_takes_the_events():
    backend = ScriptedBackend(lambda conversation, sampling, call: "x", lambda call: 3600.0)

    async def go():
        stop = threading.Event()
        run = follow(backend, QUESTION, Plan((3,)), stop, lambda: 0.01)
        while backend.running < 3:
            await anext(run)
        stop.set()
        async with asyncio.timeout(5):
            while backend.running:
                await asyncio.sleep(0.01)
        return [x async for x in run]

    [(events, over)] = asyncio.run(go())
    assert over and backend.cancelled == 3 and events[-1].kind == "start"


def test_a_failure_comes_after_the_events_before_it():
    async def go():
        backend = ScriptedBackend(lambda conversation, sampling, call: failing("no memory", fatal=True))
        seen = []
        with pytest.raises(BackendError, match="no memory"):
            async for given in follow(backend, QUESTION, Plan((2,)), threading.Event(), lambda: 0.01):
                seen.append(given)
        return seen[-1]

    events, over = asyncio.run(go())
    assert over and any(event.trajectory and event.trajectory.error for event in events)
