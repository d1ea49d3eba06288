"""The endpoint's answers, whole and streamed, with what they cost, and its errors where there is none."""

import asyncio

import pytest
from endpoint import QUESTION, Scripted, app_of, ask, call, events, joined, metric, refusal

import vlm.serving
from pacore.agreement import Adaptive
from pacore.backends import BackendError, Completion
from pacore.coordination import Event, Outcome, PacoreError, Plan, Trajectory
from pacore.journal import Journal

# Answers


def test_a_whole_answer_with_what_it_cost():
    app = app_of()
    response = ask(app)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion" and body["model"] == "mini" and body["id"].startswith("chatcmpl-")
    message = {"role": "assistant", "content": "Answer: 4", "reasoning_content": "I count. Four.", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (30, 21, 51)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 19}  # all but the two words of the answer
    assert usage["pacore"]["rounds"] == [2, 1] and usage["pacore"]["failures"] == 0
    assert usage["pacore"]["seconds"] >= 0 and usage["pacore"]["notes"] == []


def test_a_stream_shows_the_rounds_and_then_the_answer():
    response = ask(app_of(), stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events(response)
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["total_tokens"] == 51
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, usage]}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
    assert joined(chunks, "content") == "Answer: 4"
    shown = joined(chunks, "reasoning_content")
    assert shown.startswith("Round 1 of 2: 2 trajectories\n1 of 2 in, number ")
    assert "2 of 2 in, number " in shown and shown.count("Answer: 4\n") == 2
    assert shown.endswith("Round 2 of 2: the answer\nI count. Four.")


def test_usage_is_streamed_only_when_it_is_asked_for():
    chunks = events(ask(app_of(), stream=True))
    assert not any("usage" in chunk for chunk in chunks[:-1]) and chunks[-1] == "[DONE]"


def test_trajectories_that_were_never_started_are_not_counted():
    backend = Scripted()
    app = app_of(backend, plan=Plan(rounds=(16,), adaptive=Adaptive()))
    usage = ask(app).json()["usage"]
    assert usage["pacore"]["rounds"] == [4, 1] and "4 of 16 agreed" in usage["pacore"]["notes"][0]
    assert metric(app, 'pacore_trajectories_total{outcome="finished"}') == len(backend.asked) == 5
    assert metric(app, 'pacore_trajectories_total{outcome="cancelled"}') == 0


def test_the_same_question_costs_nothing_again_with_a_journal(tmp_path):
    backend, journal = Scripted(), Journal(tmp_path / "journal.db")
    app = app_of(backend, journal=journal)
    first = ask(app)
    *chunks, _ = events(ask(app, stream=True))
    assert len(backend.asked) == 3 and joined(chunks, "content") == first.json()["choices"][0]["message"]["content"]
    assert joined(chunks, "reasoning_content").endswith("the answer\nI count. Four.")
    assert ask(app, seed=1).status_code == 200 and len(backend.asked) == 6
    journal.close()


def test_the_models_are_the_base_and_its_budgets():
    body = call(app_of(), method="GET", path="/v1/models").json()
    assert [model["id"] for model in body["data"]] == ["mini", "mini:single", "mini:low", "mini:medium", "mini:high"]
    assert body["object"] == "list" and {model["object"] for model in body["data"]} == {"model"}


# Failures


def test_a_failed_trajectory_is_shown_and_counted_not_hidden():
    app = app_of(Scripted(fails=(2,)))
    *chunks, _ = events(ask(app, stream=True))
    assert "number 2 failed: call 2 answered 500 three times" in joined(chunks, "reasoning_content")
    assert metric(app, 'pacore_trajectories_total{outcome="failed"}') == 1
    usage = ask(app_of(Scripted(fails=(2,)))).json()["usage"]
    assert usage["pacore"]["failures"] == 1 and usage["total_tokens"] == 34


@pytest.mark.parametrize(
    "error", [PacoreError("round 1: all 2 failed; look at the log."), BackendError("no such model")]
)
def test_an_answer_that_cannot_be_had_is_an_error(error):
    async def solve(*_, **__):
        raise error

    app = app_of(solve=solve)
    response = ask(app)
    assert refusal(response, 502) == {
        "message": str(error),
        "type": "server_error",
        "param": None,
        "code": "backend_failed",
    }
    assert response.headers["x-should-retry"] == "false"
    chunks = events(ask(app, stream=True))
    assert chunks[-1]["error"]["message"] == str(error) and "[DONE]" not in chunks
    assert metric(app, 'pacore_requests_total{status="502"}') == 2


def test_a_mistake_of_our_own_is_an_error_without_its_details(caplog):
    async def solve(*_, **__):
        raise KeyError("/secret/path")

    app = app_of(solve=solve)
    response = call(app, {"model": "mini", "messages": QUESTION}, raise_app_exceptions=False)
    assert refusal(response, 500)["type"] == "server_error" and "secret" not in response.text
    response = ask(app, stream=True)
    assert events(response)[-1]["error"]["type"] == "server_error" and "secret" not in response.text
    assert "/secret/path" in caplog.text
    assert metric(app, 'pacore_requests_total{status="500"}') == 2


def told(text, pieces=(), reasoning=""):
    """A `solve` that tells `pieces` and then has the completion `text`, as after a second try or from the journal."""

    async def solve(backend, conversation, plan, *, problem="", journal=None, on_event=None, stream=True):
        for channel, piece in pieces:
            on_event(Event("text", 1, piece=piece, channel=channel))
        answer = Completion(text, reasoning, 1, 1, "length")
        return Outcome(answer, ((Trajectory(0, 0, 0, answer, "", ""),),), 1, 1, 0.0, 0, ())

    return solve


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        ([], "Answer: 4"),
        ([("text", "\n\n"), ("text", "Answer")], "Answer: 4"),
        ([("text", "Answer: 4")], "Answer: 4"),
        ([("text", "Answer: 4"), ("text", "\n")], "Answer: 4\n"),
        ([("text", "Perhaps")], "Perhaps\n\n[That was cut off. The whole answer:]\n\nAnswer: 4"),
    ],
)
def test_what_was_not_told_while_it_came_follows_at_the_end(pieces, content):
    *chunks, _ = events(ask(app_of(solve=told("Answer: 4", pieces, "I count.")), stream=True))
    assert joined(chunks, "content") == content and joined(chunks, "reasoning_content") == "I count."
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_half_a_surrogate_pair_of_a_model_breaks_nothing():
    solve = told("\ud83d\ude00 ok \ud83d", [("text", "\ud83d"), ("text", "\ude00 ok \ud83d")])
    assert ask(app_of(solve=solve)).status_code == 200
    assert events(ask(app_of(solve=solve), stream=True))[-1] == "[DONE]"


def test_a_silent_stream_is_kept_open(monkeypatch):
    monkeypatch.setattr(vlm.serving, "KEEP_ALIVE_SECONDS", 0.02)

    async def solve(*args, **options):
        for _ in range(20):
            await asyncio.sleep(0.02)
        return await told("4")(*args, **options)

    response = ask(app_of(solve=solve), stream=True)
    assert response.text.count(": still working\n\n") >= 2 and joined(events(response)[:-1], "content") == "4"
