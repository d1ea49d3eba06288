"""The endpoint: what clients ask is understood or refused in one clear line, counted, limited, stopped when they go."""

import asyncio
import base64
import io
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

import pacore.pictures
import pacore.server
from pacore.agreement import Adaptive
from pacore.backends import BackendError, Completion
from pacore.coordination import Budget, Event, Outcome, PacoreError, Plan, Trajectory
from pacore.fetching import FetchError
from pacore.journal import Journal
from pacore.requests import Limits
from pacore.server import create_app

QUESTION = [{"role": "user", "content": "How many?"}]


class Scripted:
    """A backend that says the same each time: 10 tokens in, 7 out. With `hold` it waits to be released or cancelled."""

    name, context = "mini", 4096

    def __init__(self, fails=(), hold=False):
        self.asked, self.stopped, self.fails, self.hold = [], 0, fails, hold
        self.released = threading.Event()

    async def complete(self, conversation, sampling, on_text=None):
        self.asked.append((conversation, sampling))
        number = len(self.asked)
        try:
            while self.hold and not self.released.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        await asyncio.sleep(0)
        if number in self.fails:
            raise BackendError(f"call {number} answered 500 three times; look at the model's log.", attempts=3)
        for kind, piece in (
            ("reasoning", "I count. "),
            ("reasoning", "Four."),
            ("text", "\n\nAnswer:"),
            ("text", " 4"),
        ):
            if on_text:
                on_text(kind, piece)
        return Completion("Answer: 4", "I count. Four.", 10, 7, "stop")

    def count_tokens(self, text):
        return len(text.split())

    async def close(self):
        pass


def app_of(backend=None, **options):
    options.setdefault("plan", Plan(rounds=(2,)))
    return create_app(backend or Scripted(), **options)


def call(app, body=None, method="POST", path="/v1/chat/completions", raise_app_exceptions=True, **options):
    """One request without a socket; `body` is JSON unless it is bytes."""
    if body is not None:
        options["content"] = body if isinstance(body, bytes) else json.dumps(body)
        options.setdefault("headers", {"Content-Type": "application/json"})
    transport = httpx.ASGITransport(app, raise_app_exceptions=raise_app_exceptions)

    async def send():
        async with httpx.AsyncClient(transport=transport, base_url="http://pacore") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def ask(app, **fields):
    return call(app, {"model": "mini", "messages": QUESTION} | fields)


def events(response):
    """The data of a stream's events, [DONE] as it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def joined(chunks, kind):
    return "".join(choice["delta"].get(kind) or "" for chunk in chunks for choice in chunk["choices"])


def metric(app, name):
    """A sample's value, or None."""
    text = call(app, method="GET", path="/metrics").text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), None)


def picture_url(size=(6, 4), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_picture(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "How many?"}]}]


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


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, 3),
        ({"pacore": None}, 3),
        ({"pacore": "single"}, 1),
        ({"pacore": []}, 1),
        ({"pacore": "low"}, 5),
        ({"pacore": "medium"}, 17),
        ({"pacore": "high"}, 37),
        ({"pacore": "3,2"}, 6),
        ({"pacore": [3, 2]}, 6),
        ({"pacore": {"rounds": [3, 2]}}, 6),
        ({"pacore": {"rounds": "low", "quorum": 1.0, "compaction": "tail:50"}}, 5),
        ({"pacore": {}}, 3),
        ({"model": "mini:low"}, 5),
        ({"model": "mini:3,2"}, 6),
    ],
)
def test_the_ways_to_ask_for_rounds(fields, calls):
    backend = Scripted()
    response = ask(app_of(backend), **fields)
    assert response.status_code == 200, response.text
    assert len(backend.asked) == calls and response.json()["model"] == fields.get("model", "mini")


def test_a_models_own_name_may_hold_a_colon():
    backend = Scripted()
    backend.name = "qwen:7b"
    app = app_of(backend)
    assert ask(app, model="qwen:7b").status_code == 200 and len(backend.asked) == 3
    assert ask(app, model="qwen:7b:low").status_code == 200 and len(backend.asked) == 8
    assert ask(app, model="qwen").status_code == 404


def plans(seen):
    """A `solve` that keeps what it was given and answers at once."""

    async def solve(backend, conversation, plan, *, problem="", journal=None, on_event=None):
        seen.append(SimpleNamespace(conversation=conversation, plan=plan, journal=journal))
        answer = Completion("4", "", 1, 1, "stop")
        return Outcome(answer, ((Trajectory(0, 0, 0, answer, "", ""),),), 1, 1, 0.0, 0, ())

    return solve


def test_every_field_reaches_the_plan_and_the_rest_is_the_servers(tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{{ problem }} {% for message in messages %}{{ message }}{% endfor %}")
    seen, journal = [], object()
    app = app_of(solve=plans(seen), plan=Plan(rounds=(2,), seed=5, template=str(template)), journal=journal)
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 99, "stop": "\n", "seed": -3}
    assert ask(app, **fields, pacore={"quorum": 0.5, "compaction": "summary"}).status_code == 200
    plan, sampling = seen[0].plan, seen[0].plan.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 7, 99)
    assert sampling.stop == ("\n",) and plan.seed == -3 and plan.quorum == 0.5 and plan.compaction == "summary"
    assert plan.rounds == (2,) and plan.template == str(template) and seen[0].journal is journal
    assert ask(app, max_tokens=1, max_completion_tokens=50, stop=["a", "b"]).status_code == 200
    assert seen[1].plan.sampling.max_tokens == 50 and seen[1].plan.sampling.stop == ("a", "b")
    assert seen[1].plan.seed == 5


def test_a_client_lowers_the_servers_budget_and_never_raises_it():
    seen = []
    app = app_of(solve=plans(seen), plan=Plan(rounds=(2,), budget=Budget(tokens=1000, seconds=60)))
    assert (
        ask(app, pacore={"budget": {"tokens": 10**9, "seconds": 5}, "views": True, "adaptive": True}).status_code == 200
    )
    assert seen[0].plan.budget == Budget(tokens=1000, seconds=5)
    assert seen[0].plan.views and seen[0].plan.adaptive == Adaptive()
    assert ask(app, pacore={"adaptive": {"start": 2, "step": 1, "confidence": 0.9}}).status_code == 200
    assert seen[1].plan.adaptive == Adaptive(2, 1, 0.9) and seen[1].plan.budget == Budget(tokens=1000, seconds=60)
    assert ask(app_of(solve=plans(seen)), pacore={"budget": {"tokens": 7}}).status_code == 200
    assert seen[2].plan.budget == Budget(tokens=7)


def test_turns_become_a_conversation():
    seen = []
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Three.", "reasoning_content": "…", "name": "x"},
        {"role": "user", "content": "And then?"},
    ]
    assert ask(app_of(solve=plans(seen)), messages=turns).status_code == 200
    assert seen[0].conversation == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
        {"role": "user", "content": [{"type": "text", "text": "And then?"}]},
    ]


def test_fields_without_effect_are_ignored():
    unknown = {"user": "me", "store": False, "metadata": {"a": "b"}, "reasoning_effort": "high", "whatever": [1, None],
               "parallel_tool_calls": True}  # fmt: skip
    harmless = {"n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {},
                "presence_penalty": 0.0, "frequency_penalty": 0, "logprobs": False, "stop": None, "max_tokens": None,
                "temperature": None, "stream": None, "stream_options": None, "seed": None}  # fmt: skip
    assert ask(app_of(), **unknown, **harmless).status_code == 200


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


# Refusals

USER = {"role": "user", "content": "a"}
BAD_FIELDS = [
    ({"model": None}, 400, "model", "valid string"),
    ({"model": "gpt-5"}, 404, "model", "choose from mini, mini:single, mini:low, mini:medium, mini:high"),
    ({"model": "mini:"}, 400, "model", ""),
    ({"model": "mini:huge"}, 400, "model", "huge"),
    ({"model": "mini:0"}, 400, "model", "0"),
    ({"model": "mini:-4"}, 400, "model", "-4"),
    ({"model": "mini:low", "pacore": "high"}, 400, "pacore", "choose one"),
    ({"model": "x" * 301}, 400, "model", "300"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": None}, 400, "messages", "valid list"),
    ({"messages": "How many?"}, 400, "messages", "valid list"),
    ({"messages": ["How many?"]}, 400, "messages[0]", "dictionary"),
    ({"messages": [{"content": "a"}]}, 400, "messages[0].role", "required"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
    ({"messages": [{"role": "tool", "content": "a"}, USER]}, 400, "messages[0].role", "'tool'"),
    ({"messages": [USER, {"role": "assistant", "content": "b"}]}, 400, "messages", "end with the user's question"),
    ({"messages": [{"role": "system", "content": "a"}]}, 400, "messages", "end with the user's question"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "valid list"),
    ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "empty"),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, 400, "messages[0].content[0]", "type"),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "messages[0].content[0]", "'file'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages[0].content[0].text", "required"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].image_url", ""),
    ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "data:,"}]}, USER]}, 400,
     "messages[0].content", "send it in a user's"),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2 (it is 2.5)"),
    ({"temperature": "hot"}, 400, "temperature", "'hot'"),
    ({"temperature": True}, 400, "temperature", "True"),
    ({"top_p": 0}, 400, "top_p", "greater than 0"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1.5}, 400, "max_tokens", "1.5"),
    ({"max_tokens": 4096}, 400, "max_tokens", "4,096"),
    ({"max_completion_tokens": 10**40}, 400, "max_completion_tokens", "less than"),
    ({"stop": ""}, 400, "stop", "at least 1"),
    ({"stop": ["a", 5]}, 400, "stop[1]", "valid string"),
    ({"stop": list("abcde")}, 400, "stop", "at most 4"),
    ({"seed": 2**63}, 400, "seed", "less than"),
    ({"seed": "x"}, 400, "seed", "valid integer"),
    ({"stream": "yes"}, 400, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage", "valid boolean"),
    ({"n": 2}, 400, "n", "n is 2, which is not supported; leave it out or send 1"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"tool_choice": "required"}, 400, "tool_choice", "not supported"),
    ({"functions": [{}]}, 400, "functions", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"logprobs": True}, 400, "logprobs", "not supported"),
    ({"logit_bias": {"5": -100}}, 400, "logit_bias", "not supported"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", "not supported"),
    ({"audio": {}}, 400, "audio", "leave it out"),
    ({"pacore": 4}, 400, "pacore", "dictionary"),
    ({"pacore": "huge"}, 400, "pacore", "huge"),
    ({"pacore": ""}, 400, "pacore", ""),
    ({"pacore": "9" * 5000}, 400, "pacore", "…"),
    ({"pacore": [0]}, 400, "pacore", "0"),
    ({"pacore": [True]}, 400, "pacore", "True"),
    ({"pacore": [4, "a"]}, 400, "pacore", "'a'"),
    ({"pacore": [[4]]}, 400, "pacore", "[[4]]"),
    ({"pacore": [1000]}, 400, "pacore", "128"),
    ({"pacore": [10**4000]}, 400, "pacore", "…"),
    ({"pacore": [1] * 200}, 400, "pacore", "…"),
    ({"pacore": {"rounds": 4}}, 400, "pacore", "4"),
    ({"pacore": {"quorum": 2.0}}, 400, "pacore", "2"),
    ({"pacore": {"compaction": "guess"}}, 400, "pacore", "guess"),
    ({"pacore": {"adaptive": {"start": 1}}}, 400, "pacore", "start 1"),
    ({"pacore": {"adaptive": {"pace": 1}}}, 400, "pacore.adaptive.pace", "not permitted"),
    ({"pacore": {"budget": {"tokens": 0}}}, 400, "pacore.budget.tokens", "greater than 0"),
    ({"pacore": {"budget": {"money": 1}}}, 400, "pacore.budget.money", "not permitted"),
    ({"pacore": {"views": "yes"}}, 400, "pacore.views", "valid boolean"),
    ({"pacore": {"template": "/etc/passwd"}}, 400, "pacore.template", "not permitted"),
    ({"pacore": {"seed": 4}}, 400, "pacore.seed", "not permitted"),
]  # fmt: skip


def refusal(response, status):
    """The error object of a response, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and set(response.json()) == {"error"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 400
    assert "instance of" not in error["message"]  # pydantic's words for a class of ours
    return error


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"), BAD_FIELDS, ids=[json.dumps(case[0])[:60] for case in BAD_FIELDS]
)
def test_a_field_that_is_wrong_is_named_with_its_value(fields, status, param, words):
    backend = Scripted()
    for stream in ({}, {"stream": True}):
        error = refusal(ask(app_of(backend), **stream | fields), status)
        assert error["param"] == param and words in error["message"]
    assert not backend.asked


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"\x1f\x8b\x08", b'{"model": NaN}', b'{"a": Infinity}',
     b"[" * 100_000, b'{"model": "mini", "messages": [{"role": "user", "content": "\\ud800"}]}',
     b'{"a": ' + b"9" * 5000 + b"}", '{"model": "ä"}'.encode("utf-16"), b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body):
    assert refusal(call(app_of(), body), 400)["code"] == "invalid_json"


def test_another_content_type_is_refused_since_any_web_page_may_send_it():
    body = json.dumps({"model": "mini", "messages": QUESTION})
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert "application/json" in refusal(call(app_of(), content=body, headers=headers), 415)["message"]
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert call(app_of(), content=body, headers=headers).status_code == 200


def test_unknown_paths_and_methods_have_error_objects_too():
    assert refusal(call(app_of(), method="GET", path="/v1/embeddings"), 404)["type"] == "not_found_error"
    response = call(app_of(), method="GET")
    refusal(response, 405)
    assert response.headers["allow"] == "POST"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ROUNDS = st.lists(st.integers(-1, 20), max_size=3) | st.sampled_from(["low", "3,2", "high", ",", "1,,2"]) | JSON
TEXT = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9) | JSON})
PICTURE = st.fixed_dictionaries({"type": st.just("image_url"), "image_url": JSON | st.just({"url": "data:,"})})
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": st.text(max_size=9) | st.lists(TEXT | PICTURE | JSON, max_size=3) | JSON,
    }
)
# By field what it may plausibly be; half of the time it is anything.
FIELDS = {
    "model": st.sampled_from(["mini", "mini:low", "mini:2,2", "mini:x"]),
    "messages": st.lists(MESSAGE, max_size=3) | st.lists(MESSAGE, max_size=2).map(lambda turns: [*turns, USER]),
    "pacore": ROUNDS | st.fixed_dictionaries({"rounds": ROUNDS}, optional={"quorum": JSON, "compaction": JSON}),
    "temperature": st.floats(-1, 3),
    "max_tokens": st.integers(-1, 5000),
    "stop": st.lists(st.text(max_size=3), max_size=5),
    "seed": st.integers(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "n": st.integers(0, 2),
    "tools": st.just([]),
    "response_format": st.just({"type": "text"}),
    "logit_bias": st.just({}),
    "unknown": JSON,
}
FEW = st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True)
CHANGES = FEW.flatmap(lambda names: st.fixed_dictionaries({name: FIELDS[name] | JSON for name in names}))
BODIES = CHANGES.map(lambda changes: {"model": "mini", "messages": QUESTION} | changes) | JSON | CHANGES


@given(BODIES | st.binary(max_size=30))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_body_breaks_the_server(body):
    response = call(app_of(solve=plans([])), body if isinstance(body, bytes) else json.dumps(body).encode())
    event(f"status {response.status_code}")
    if response.status_code != 200:
        assert response.status_code in (400, 404)
        refusal(response, response.status_code)


# Pictures


def test_a_picture_by_data_url_is_decoded_once_for_all_trajectories():
    seen = []
    app = app_of(solve=plans(seen))
    assert ask(app, messages=with_picture(picture_url(), picture_url((3, 2), "JPEG"))).status_code == 200
    first, second, text = seen[0].conversation[0]["content"]
    assert first["type"] == "image" and (first["image"].size, first["image"].mode) == ((6, 4), "RGB")
    assert second["image"].size == (3, 2) and text == {"type": "text", "text": "How many?"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no data: URL"),
        ("file:///etc/passwd", "no data: URL"),
        ("/etc/passwd", "no data: URL"),
        ("ftp://a.example/x.png", "no data: URL"),
        ("http://a.example/x.png", "does not fetch"),
        ("HTTPS://a.example/x.png", "does not fetch"),
        ("data:image/png;base64", "cannot be read|no picture"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png;base64,ä", "not base64"),
        ("data:image/png;base64,", "no picture"),
        ("data:image/png;base64,aGVsbG8=", "no picture"),
        (picture_url(kind="EPS"), "no picture"),  # Pillow would start Ghostscript
        (picture_url()[:-36], "damaged|no picture"),
        (picture_url((40, 30)), "40x30 pixels, the request has room for 1,000 more"),
        ("data:image/png;base64," + "A" * 4000, "more than 2,000 bytes"),
    ],
)
def test_a_picture_that_cannot_be_had_is_refused(url, words):
    limits = Limits(pixels=1000, picture_bytes=2000)
    for stream in (False, True):
        error = refusal(ask(app_of(limits=limits), messages=with_picture(url), stream=stream), 400)
        assert re.search(words, error["message"]) and error["param"] == "messages[0].content"


def test_pictures_of_a_request_are_limited_together():
    url = picture_url((20, 20))
    app = app_of(limits=Limits(pixels=1000, pictures=3))
    assert ask(app, messages=with_picture(url, url)).status_code == 200
    assert "room for 200 more" in refusal(ask(app, messages=with_picture(url, url, url)), 400)["message"]
    assert "4 pictures, at most 3" in refusal(ask(app, messages=with_picture(url, url, url, url)), 400)["message"]


def test_a_picture_from_the_web_only_where_it_is_allowed(monkeypatch):
    asked = []

    async def fetch(url, max_bytes):
        asked.append((url, max_bytes))
        if "private" in url:
            raise FetchError("'private.example' is not a host on the public internet; send it.")
        return base64.b64decode(picture_url().partition(",")[2])

    monkeypatch.setattr(pacore.pictures, "fetch_picture", fetch)
    app = app_of(allow_http_pictures=True, limits=Limits(picture_bytes=5000))
    assert ask(app, messages=with_picture("https://a.example/x.png")).status_code == 200
    error = refusal(ask(app, messages=with_picture("http://private.example/")), 400)
    assert "public internet" in error["message"] and error["code"] == "picture_not_fetched"
    assert asked == [("https://a.example/x.png", 5000), ("http://private.example/", 5000)]
    refusal(ask(app, messages=with_picture("file:///etc/passwd")), 400)
    refusal(ask(app_of(), messages=with_picture("https://a.example/x.png")), 400)
    assert len(asked) == 2


def test_slow_web_servers_do_not_hold_a_turn(monkeypatch):
    async def fetch(url, max_bytes):
        await asyncio.sleep(0.03)
        return base64.b64decode(picture_url().partition(",")[2])

    monkeypatch.setattr(pacore.pictures, "fetch_picture", fetch)
    monkeypatch.setattr(pacore.pictures, "SECONDS", 0.1)
    urls = [f"https://a.example/{n}.png" for n in range(10)]
    error = refusal(ask(app_of(allow_http_pictures=True), messages=with_picture(*urls)), 400)
    assert "not there within 0.1 s" in error["message"]


def test_the_own_network_is_out_of_reach_through_the_server():
    app = app_of(allow_http_pictures=True)
    for host in ("127.0.0.1:1", "2130706433", "[::ffff:7f00:1]", "169.254.169.254"):
        error = refusal(ask(app, messages=with_picture(f"http://{host}/")), 400)
        assert "not a host on the public internet" in error["message"]


# Limits


def test_a_body_is_counted_while_it_arrives():
    sent = []

    async def pieces():
        yield b'{"model": "mini", "messages": [{"role": "user", "content": "'
        for _ in range(1000):
            sent.append(1)
            yield b"a" * 1000

    app = app_of(limits=Limits(body_bytes=10_000))
    headers = {"Content-Type": "application/json"}
    assert "10,000 bytes" in refusal(call(app, content=pieces(), headers=headers), 413)["message"]
    assert len(sent) < 20
    refusal(call(app, b"a" * 10_001), 413)
    refusal(call(app, b"a" * 10_000), 400)


def test_a_body_that_trickles_in_does_not_hold_its_place(monkeypatch):
    monkeypatch.setattr("pacore.requests.BODY_SECONDS", 0.05)

    async def pieces():
        yield b"{"
        await asyncio.sleep(5)

    refusal(call(app_of(), content=pieces(), headers={"Content-Type": "application/json"}), 408)


def test_the_key_opens_everything_and_health_needs_none():
    app = app_of(api_key="s3cret-ä")
    for sent in (None, "Bearer", "Bearer ", "Bearer wrong", "Basic s3cret-ä", "s3cret-ä", "Bearer s3cret-äx"):
        headers = {"Content-Type": "application/json"} | ({"Authorization": sent.encode()} if sent else {})
        response = call(app, b"{}", headers=headers)
        assert refusal(response, 401)["code"] == "invalid_api_key" and response.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/metrics"):
            refusal(call(app, method="GET", path=path, headers=headers), 401)
    key = {"Authorization": "Bearer s3cret-ä".encode()}
    body = json.dumps({"model": "mini", "messages": QUESTION})
    assert call(app, content=body, headers=key | {"Content-Type": "application/json"}).status_code == 200
    assert call(app, method="GET", path="/v1/models", headers=key).status_code == 200
    assert call(app, method="GET", path="/health").json() == {"status": "ok", "model": "mini"}
    with pytest.raises(ValueError, match="key is empty"):
        app_of(api_key="")


def test_requests_a_minute_are_counted_by_client(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pacore.server, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    app = app_of(limits=Limits(per_minute=2))

    def visit(address):
        scope_client = httpx.ASGITransport(app, client=(address, 1))

        async def send():
            async with httpx.AsyncClient(transport=scope_client, base_url="http://pacore") as client:
                return await client.post("/v1/chat/completions", json={"model": "mini", "messages": QUESTION})

        return asyncio.run(send())

    assert [visit("192.0.2.1").status_code for _ in range(2)] == [200, 200]
    clock.now += 20.5
    response = visit("192.0.2.1")
    assert refusal(response, 429)["code"] == "rate_limit_exceeded" and response.headers["retry-after"] == "40"
    assert visit("192.0.2.2").status_code == 200
    clock.now += 40
    assert visit("192.0.2.1").status_code == 200
    # Of IPv6 one subscriber has a whole block of addresses.
    assert [visit(f"2001:db8::{n}").status_code for n in range(1, 4)] == [200, 200, 429]
    assert visit("2001:db8:0:1::1").status_code == 200


def test_wrong_keys_are_counted_apart_from_the_right_one():
    app = app_of(api_key="right", limits=Limits(per_minute=3))
    body = json.dumps({"model": "mini", "messages": QUESTION})

    def status(key):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        return call(app, content=body, headers=headers).status_code

    assert [status("wrong") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert [status("right") for _ in range(4)] == [200, 200, 200, 429]


def test_limits_that_make_no_sense_are_refused():
    for name in ("concurrency", "per_minute", "body_bytes"):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})
    assert Limits(queue=0, per_minute=None).queue == 0


async def until(condition, seconds=120.0):
    """Waits for another task's or thread's doing; the condition may be a coroutine function."""
    end = time.monotonic() + seconds
    while not (await condition() if asyncio.iscoroutinefunction(condition) else condition()):
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


def test_some_work_some_wait_and_the_others_are_sent_away():
    backend = Scripted(hold=True)
    app = app_of(backend, plan=Plan(rounds=(1,)), limits=Limits(concurrency=1, queue=1))

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pacore") as client:

            def post():
                body = {"model": "mini", "messages": QUESTION}
                return asyncio.create_task(client.post("/v1/chat/completions", json=body))

            first = post()
            await until(lambda: len(backend.asked) == 1)
            second = post()

            async def one_waits():
                counters = (await client.get("/metrics")).text
                return "pacore_requests_waiting 1\n" in counters and "pacore_requests_in_flight 2\n" in counters

            await until(one_waits)
            third = await post()
            assert refusal(third, 429)["code"] == "busy" and int(third.headers["retry-after"]) > 0
            assert len(backend.asked) == 1
            backend.released.set()
            assert [(await first).status_code, (await second).status_code] == [200, 200]

    asyncio.run(scenario())
    assert metric(app, "pacore_requests_in_flight") == 0 and metric(app, "pacore_requests_waiting") == 0


def test_nobody_waits_longer_than_the_limit():
    backend = Scripted(hold=True)
    app = app_of(backend, limits=Limits(concurrency=1, queue=1, queue_seconds=1))

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pacore") as client:
            body = {"model": "mini", "messages": QUESTION}
            first = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await until(lambda: backend.asked)
            second = await client.post("/v1/chat/completions", json=body)
            assert "no turn came within 1 s" in refusal(second, 429)["message"]
            backend.released.set()
            assert (await first).status_code == 200

    asyncio.run(scenario())


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

    async def solve(backend, conversation, plan, *, problem="", journal=None, on_event=None):
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
    monkeypatch.setattr(pacore.server, "KEEP_ALIVE_SECONDS", 0.02)

    async def solve(*args, **options):
        for _ in range(20):
            await asyncio.sleep(0.02)
        return await told("4")(*args, **options)

    response = ask(app_of(solve=solve), stream=True)
    assert response.text.count(": still working\n\n") >= 2 and joined(events(response)[:-1], "content") == "4"


# Other paths


def test_the_models_are_the_base_and_its_budgets():
    body = call(app_of(), method="GET", path="/v1/models").json()
    assert [model["id"] for model in body["data"]] == ["mini", "mini:single", "mini:low", "mini:medium", "mini:high"]
    assert body["object"] == "list" and {model["object"] for model in body["data"]} == {"model"}


def test_the_counters_are_in_prometheus_format():
    app = app_of()
    ask(app)
    ask(app, temperature=9)
    response = call(app, method="GET", path="/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    *lines, last = response.text.split("\n")
    assert last == ""
    name, number = r"[a-z_]+", r"-?[0-9.e+-]+"
    sample = re.compile(rf'{name}(\{{{name}="[^"\\\n]*"\}})? {number}')
    for line in lines:
        assert sample.fullmatch(line) or re.fullmatch(
            rf"# (HELP {name} .+|TYPE {name} (counter|gauge|histogram))", line
        )
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == 6
    for expected in ('pacore_requests_total{status="200"} 1', 'pacore_requests_total{status="400"} 1',
                     'pacore_trajectories_total{outcome="finished"} 3', 'pacore_tokens_total{kind="prompt"} 30',
                     'pacore_tokens_total{kind="completion"} 21', "pacore_requests_in_flight 0",
                     'pacore_request_seconds_bucket{le="+Inf"} 2', "pacore_request_seconds_count 2"):  # fmt: skip
        assert expected in lines
    buckets = [float(line.split()[-1]) for line in lines if "_bucket" in line]
    assert buckets == sorted(buckets)


# Over a socket


@contextmanager
def served(app):
    """The address of the app behind uvicorn, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def test_the_official_client():
    app = app_of(api_key="right")
    with served(app) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="right", max_retries=0) as client:
        whole = client.chat.completions.create(model="mini:low", messages=QUESTION, temperature=0.5)
        assert whole.choices[0].message.content == "Answer: 4" and whole.usage.total_tokens == 85
        assert whole.choices[0].message.reasoning_content == "I count. Four."
        assert whole.usage.pacore["rounds"] == [4, 1] and whole.usage.completion_tokens_details.reasoning_tokens == 33
        options = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": {"pacore": [3]}}
        chunks = list(client.chat.completions.create(model="mini", messages=QUESTION, **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Answer: 4"
        assert chunks[-1].usage.total_tokens == 68
        reasoning = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
        assert "3 of 3 in" in reasoning
        assert [model.id for model in client.models.list()][:2] == ["mini", "mini:single"]
        with pytest.raises(openai.NotFoundError, match="choose from mini"):
            client.chat.completions.create(model="gpt-5", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="not supported") as refused:
            client.chat.completions.create(model="mini", messages=QUESTION, n=2)
        assert refused.value.param == "n" and refused.value.code == "unsupported"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_the_official_client_sees_a_stream_that_fails():
    with (
        served(app_of(Scripted(fails=range(1, 4)))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
        pytest.raises(openai.APIError, match=r"failed|500"),
    ):
        list(client.chat.completions.create(model="mini", messages=QUESTION, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_work(stream):
    backend = Scripted(hold=True)
    app = app_of(backend, plan=Plan(rounds=(4,)), limits=Limits(concurrency=1))
    body = json.dumps({"model": "mini", "messages": QUESTION, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    def post(address):
        client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return client

    def counters(address):
        return httpx.get(f"{address}/metrics").text

    async def scenario(address):
        working = post(address)
        await until(lambda: len(backend.asked) == 4)
        waiting = post(address)
        await until(lambda: "pacore_requests_waiting 1\n" in counters(address))
        waiting.close()  # from the queue
        await until(lambda: "pacore_requests_waiting 0\n" in counters(address))
        assert backend.stopped == 0
        working.close()
        await until(lambda: backend.stopped == 4)
        await until(lambda: "pacore_requests_in_flight 0\n" in counters(address))
        assert 'pacore_requests_total{status="499"} 2\n' in counters(address)
        assert 'pacore_trajectories_total{outcome="cancelled"} 4\n' in counters(address)
        backend.released.set()
        after = await asyncio.to_thread(httpx.post, f"{address}/v1/chat/completions", json=json.loads(body))
        assert after.status_code == 200 and len(backend.asked) == 9  # its turn was given back

    with served(app) as address:
        asyncio.run(scenario(address))
