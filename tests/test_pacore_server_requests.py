"""What clients ask of the endpoint: understood, or refused in one clear line that names the field."""

import json

import pytest
from endpoint import QUESTION, Scripted, app_of, ask, call, plans, refusal
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pacore.agreement import Adaptive
from pacore.coordination import Budget, Plan

# The plan and the conversation


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
