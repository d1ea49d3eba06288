"""The backend over OpenAI's protocol, against a server that fails in every way a server can."""

import asyncio
import base64
import functools
import io
import itertools
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, hang, raw, reset, say, status, trickle, truncated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pacore.backends import BackendError, Sampling
from pacore.journal import Journal, trajectory_key
from pacore.openai_answers import Said, Told
from pacore.openai_backend import BACKOFF, MAX_BACKOFF, MAX_RETRY_AFTER, OpenAIBackend

ROOT = Path(__file__).resolve().parents[1]
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(autouse=True, scope="module")
def one_ssl_context():
    """Each client reads all certificates, a third of the time of these tests, though no connection here needs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


class Pauses(list):
    """Takes no time, and notes how long it should have been."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


class NoJitter(random.Random):
    def uniform(self, low, high):
        return low


def complete(server, sampling=None, conversation=QUESTION, on_text=None, **options):
    """The completion of one call, or its BackendError."""

    async def main():
        backend = OpenAIBackend(server.url, "stub", **{"sleep": Pauses(), "timeout": 20.0} | options)
        try:
            return await backend.complete(conversation, sampling or Sampling(), on_text)
        except BackendError as error:
            return error
        finally:
            await backend.close()

    return asyncio.run(main())


def complete_all(server, seeds, on_text=None, **options) -> dict:
    """By seed, what `complete` gives for each of them, all at once."""

    async def main():
        backend = OpenAIBackend(server.url, "stub", concurrency=99, **{"sleep": Pauses(), "timeout": 20.0} | options)
        calls = [backend.complete(QUESTION, Sampling(seed=seed), on_text) for seed in seeds]
        done = await asyncio.gather(*calls, return_exceptions=True)
        await backend.close()
        return dict(zip(seeds, done, strict=True))

    return asyncio.run(main())


def calls_of(server, seed) -> int:
    return sum(call.body["seed"] == seed for call in server.calls)


def nobody(kind, piece):
    """A listener that makes the call a streamed one."""


both = pytest.mark.parametrize("on_text", [None, nobody], ids=["whole", "streamed"])


# Faults that pass

PASSING = {
    "500": status(500),
    "503 in html": status(503, body=b"<html>down\nfor now</html>"),
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "reset": reset(),
    "truncated": truncated(),
    "not json": raw(b"<html>login</html>"),
    "not utf-8": raw(b'{"choices": "\xff"}'),
    "a list": raw([]),
    "null": raw(None),
    "no choices": raw({"object": "chat.completion"}),
    "choices null": raw({"choices": None}),
    "choices empty": raw({"choices": []}),
    "content a number": raw({"choices": [{"message": {"content": 4}, "finish_reason": "stop"}]}),
    "tokens a word": raw({"choices": [{"message": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": "x"}}),
    "no finish": raw({"choices": [{"message": {"content": "4"}}]}),
    "nothing said": say("", usage=None),
    "aborted": say("4", finish="abort"),
    "an error in a 200": raw({"error": {"message": "overloaded", "code": 503}}),
    "an error in words": raw({"error": "overloaded"}),
}


@both
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_is_tried_again(fault, on_text):
    pauses = Pauses()
    with FaultServer([fault, say("4")]) as server:
        done = complete(server, on_text=on_text, sleep=pauses)
    assert not isinstance(done, BackendError), done
    assert (done.text, done.attempts, len(server.calls), len(pauses)) == ("4", 2, 2, 1)


@both
def test_a_fault_that_stays_is_an_error_and_never_an_empty_completion(on_text):
    faults = dict(enumerate(PASSING))
    with FaultServer(lambda call: PASSING[faults[call.body["seed"]]]) as server:
        errors = complete_all(server, faults, on_text, retries=1)
    for seed, error in errors.items():
        assert isinstance(error, BackendError), faults[seed]
        assert error.attempts == calls_of(server, seed) == 2 and not error.fatal, faults[seed]
        assert "\n" not in str(error) and server.url.removesuffix("/v1") in str(error) and "2 times" in str(error)


@both
def test_a_call_that_takes_too_long_is_ended_here_and_at_the_server(on_text):
    slow = {0: hang(), 1: trickle(0.02)}
    with FaultServer(lambda call: slow[call.body["seed"]] if call.number < 2 else say("4")) as server:
        done = complete_all(server, slow, on_text, timeout=1.0)  # room for the second try on a busy machine
        assert [(entry.text, entry.attempts) for entry in done.values()] == [("4", 2)] * 2
    assert server.gone == 2 and len(server.calls) == 4
    with FaultServer(lambda call: slow[call.body["seed"]]) as server:
        for error in complete_all(server, slow, on_text, timeout=0.1, retries=1).values():
            assert error.attempts == 2 and not error.fatal
            assert "no whole answer within 0.1 s; raise the timeout" in str(error)


# Faults that stay


@both
@pytest.mark.parametrize(
    "code, fatal", [(400, False), (401, True), (402, True), (403, True), (404, True), (413, False), (422, False)]
)
def test_a_refusal_is_final_at_once_with_the_server_s_words(code, fatal, on_text):
    with FaultServer([status(code, "model 'x'\n  is not here")]) as server:
        error = complete(server, on_text=on_text)
    assert isinstance(error, BackendError) and error.fatal == fatal
    assert error.attempts == len(server.calls) == 1
    assert f"HTTP {code}: model 'x' is not here; " in str(error)


@pytest.mark.parametrize(
    "refusal, words",
    [
        (status(422, body={"detail": [{"loc": "seed"}]}), "[{'loc': 'seed'}]"),
        (status(400, body={"object": "error", "message": "too long", "code": 400}), "too long"),
        (status(400, body=b"plain words"), "plain words"),
        (raw({"error": {"message": "too long", "code": 400}}), "HTTP 400: too long"),
        (say("", finish="content_filter"), "content filter"),
    ],
)
@both
def test_a_refusal_is_understood_in_every_dialect(refusal, words, on_text):
    with FaultServer([refusal]) as server:
        error = complete(server, on_text=on_text)
    assert isinstance(error, BackendError) and words in str(error) and len(server.calls) == 1


def test_a_spent_account_is_final_though_its_status_is_that_of_haste():
    with FaultServer([status(429, body={"error": {"message": "no credit", "code": "insufficient_quota"}})]) as server:
        error = complete(server)
    assert error.fatal and len(server.calls) == 1 and "credit" in str(error)


def test_a_refused_connection_is_fatal_after_the_tries():
    with FaultServer() as server:
        server.die()
    error = complete(server, retries=2)
    assert error.fatal and error.attempts == 3 and "check the base URL and that the server runs" in str(error)


@both
def test_a_server_killed_in_its_first_call_is_fatal_once_it_refuses(on_text):
    async def main(server):
        backend = OpenAIBackend(server.url, "stub", retries=2, sleep=Pauses())
        call = asyncio.ensure_future(backend.complete(QUESTION, Sampling(), on_text))
        while not server.calls:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(server.die)
        with pytest.raises(BackendError) as caught:
            await call
        await backend.close()
        return caught.value

    with FaultServer([hang()]) as server:
        error = asyncio.run(main(server))
    assert error.fatal and error.attempts == 3 and len(server.calls) == 1


def test_an_error_of_the_listener_is_not_a_fault_of_the_server():
    def listener(kind, piece):
        raise TimeoutError("mine")

    with FaultServer() as server, pytest.raises(TimeoutError, match="mine"):
        complete(server, on_text=listener)
    assert len(server.calls) == 1


# Pauses


@pytest.mark.parametrize(
    "headers, pause",
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "86400"}, MAX_RETRY_AFTER),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:09 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, MAX_RETRY_AFTER),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_honoured_up_to_a_limit(headers, pause):
    pauses = Pauses()
    with FaultServer([status(429, headers=headers), status(503, headers=headers), say()]) as server:
        assert complete(server, sleep=pauses, rng=NoJitter()).attempts == 3
    assert pauses == [pause + BACKOFF, pause + 2 * BACKOFF]


def test_pauses_are_drawn_from_a_growing_range_and_the_generator_decides_them():
    drawn = []
    with FaultServer([status(500)]) as server:
        for seed in (1, 1, 2):
            pauses = Pauses()
            complete(server, sleep=pauses, rng=random.Random(seed), retries=8)
            for n, pause in enumerate(pauses, 1):
                longest = min(MAX_BACKOFF, BACKOFF * 2**n)
                assert longest / 2 <= pause <= longest
            drawn.append(pauses)
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 8


def test_no_more_calls_are_in_flight_than_allowed_and_a_pausing_one_keeps_its_place():
    async def main(server):
        backend = OpenAIBackend(server.url, "stub", concurrency=3, sleep=pause)
        done = await asyncio.gather(*(backend.complete(QUESTION, Sampling(seed=seed)) for seed in range(24)))
        await backend.close()
        return done

    async def pause(seconds):
        pausing.append(len(pausing))
        await asyncio.sleep(0.05)
        others.append(len(server.calls))

    pausing, others = [], []
    with FaultServer(lambda call: status(429) if call.number < 3 else say(delay=0.01)) as server:
        done = asyncio.run(main(server))
    assert server.peak == 3 and len(server.calls) == 27
    assert sorted(entry.attempts for entry in done) == [1] * 21 + [2] * 3
    assert others[0] == 3  # all three places were taken by pausing calls, and nobody else called


# What is sent


@both
def test_the_call_carries_the_sampling_the_key_and_the_headers(on_text):
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_tokens=64, stop=("\n\n", "END"), seed=2**40)
    with FaultServer() as server:
        complete(server, sampling, on_text=on_text, api_key=" sk-1\n", headers={"X-Team": "blue"}, logprobs=True)
        complete(server, on_text=on_text)
    full, plain = server.calls
    assert full.headers["authorization"] == "Bearer sk-1" and full.headers["x-team"] == "blue"
    want = {
        "model": "stub",
        "messages": QUESTION,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 64,
        "stop": ["\n\n", "END"],
        "seed": 2**40,
        "logprobs": True,
    }
    stream = {"stream": True, "stream_options": {"include_usage": True}} if on_text else {}
    assert full.body == want | stream
    assert plain.body == {key: want[key] for key in ("model", "messages")} | {"temperature": 1.0, "top_p": 1.0} | stream


def test_text_parts_and_other_turns_are_kept():
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    with FaultServer() as server:
        complete(server, conversation=conversation)
    assert server.calls[0].body["messages"] == [{"role": "system", "content": "Be brief."}, conversation[1]]


def picture_of(call) -> tuple[str, bytes]:
    """(kind, bytes) of the first picture that the server was sent."""
    part = next(part for part in call.body["messages"][0]["content"] if part["type"] == "image_url")
    header, _, encoded = part["image_url"]["url"].partition(";base64,")
    return header.removeprefix("data:image/"), base64.b64decode(encoded)


def test_pictures_arrive_upright_as_png_or_jpeg(tmp_path):
    drawing = Image.effect_noise((30, 20), 60).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    drawing.save(tmp_path / "a.png")
    drawing.save(tmp_path / "a.webp", lossless=True)
    drawing.save(tmp_path / "a.jpg")
    drawing.save(tmp_path / "turned.jpg", exif=turned)
    jpeg = (tmp_path / "a.jpg").read_bytes()
    address = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    webp = "data:image/webp;base64," + base64.b64encode((tmp_path / "a.webp").read_bytes()).decode()
    with FaultServer() as server:
        for picture in (drawing, str(tmp_path / "a.png"), tmp_path / "a.webp", webp):
            complete(server, conversation=shown(picture))
            kind, sent = picture_of(server.calls[-1])
            assert kind == "png" and Image.open(io.BytesIO(sent)).tobytes() == drawing.tobytes()
        for picture in (tmp_path / "a.jpg", address):
            complete(server, conversation=shown(picture))
            assert picture_of(server.calls[-1]) == ("jpeg", jpeg)
        complete(server, conversation=shown(tmp_path / "turned.jpg"))
    kind, sent = picture_of(server.calls[-1])
    assert kind == "jpeg" and Image.open(io.BytesIO(sent)).size == (20, 30)


def shown(picture) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]


def test_what_cannot_be_sent_is_refused_before_a_call(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with FaultServer() as server:
        for picture in (tmp_path / "a.png", tmp_path / "none.png", "https://example.org/a.png"):
            error = complete(server, conversation=shown(picture))
            assert isinstance(error, BackendError) and error.attempts == 0 and "\n" not in str(error)
        error = complete(server, conversation=[{"role": "user", "content": [{"type": "video", "video": "x"}]}])
        assert "'video'" in str(error)
    assert not server.calls


def test_trajectories_that_share_a_picture_share_its_encoding(monkeypatch):
    saved = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *rest, **more: saved.append(1) or save(self, *rest, **more))
    conversation = shown(Image.new("RGB", (20, 20), "red"))

    async def main(server):
        backend = OpenAIBackend(server.url, "stub")
        await asyncio.gather(*(backend.complete(conversation, Sampling()) for _ in range(6)))
        await backend.close()

    with FaultServer() as server:
        asyncio.run(main(server))
    assert len(saved) == 1 and len({picture_of(call) for call in server.calls}) == 1


# What comes back


@both
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_the_server_s_own_reasoning_is_kept_apart(on_text, name):
    with FaultServer([say("\n\n4 </think> ok", reasoning=" two and two ", name=name)]) as server:
        done = complete(server, on_text=on_text)
    assert (done.reasoning, done.text) == ("two and two", "4 </think> ok")


@both
def test_marked_reasoning_is_split_where_the_server_leaves_it(on_text):
    with FaultServer([say("<think>two and two</think>\n\n4")]) as server:
        done = complete(server, on_text=on_text)
    assert (done.reasoning, done.text, done.finish) == ("two and two", "4", "stop")


@both
@pytest.mark.parametrize(
    "reply, tokens",
    [
        (say("4"), (7, 3)),
        (say("four, no?", usage=None), (4, 3)),  # 14 and 9 bytes, four a token
        (say("4", usage=None, logprobs=(-0.5, -0.25)), (4, 2)),
    ],
)
def test_tokens_are_the_server_s_or_else_estimated(on_text, reply, tokens):
    with FaultServer([reply]) as server:
        done = complete(server, on_text=on_text)
    assert (done.prompt_tokens, done.completion_tokens) == tokens


def test_an_estimate_is_never_more_than_was_allowed():
    with FaultServer([say("word " * 100, usage=None, finish="length")]) as server:
        assert complete(server, Sampling(max_tokens=5), on_text=nobody).completion_tokens == 5


@both
def test_log_probabilities_and_the_finish_are_passed_on(on_text):
    with FaultServer([say("4", logprobs=(-0.5, -0.25), finish="length"), say("4")]) as server:
        done = complete(server, on_text=on_text, logprobs=True)
        assert done.logprobs == (-0.5, -0.25) and done.finish == "length" and 0 < done.seconds < 20
        assert complete(server, on_text=on_text, logprobs=True).logprobs is None


@both
def test_an_empty_message_counts_where_the_server_counts_its_tokens(on_text):
    with FaultServer([say("", usage=(7, 64), finish="length")]) as server:
        done = complete(server, on_text=on_text)
    assert (done.text, done.reasoning, done.completion_tokens, done.attempts) == ("", "", 64, 1)


def test_json_under_another_content_type_is_read():
    answer = json.dumps({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}).encode()
    with FaultServer([status(200, headers={"Content-Type": "text/plain"}, body=answer)]) as server:
        assert complete(server).text == "4"


# What a listener hears


class Heard(list):
    def __call__(self, kind, piece):
        self.append((kind, piece))

    def joined(self, kind) -> str:
        return "".join(piece for heard, piece in self if heard == kind)


def test_text_is_heard_as_it_comes_and_adds_up_to_the_completion():
    heard = Heard()
    with FaultServer([say(" <think> two\nand two </think>\n\nIt is 4. ")]) as server:
        done = complete(server, on_text=heard)
    assert len(heard) > 5
    assert (
        (heard.joined("reasoning"), heard.joined("text")) == (done.reasoning, done.text) == ("two\nand two", "It is 4.")
    )


@pytest.mark.parametrize("broken", [reset("It is 4, be"), truncated("It is 4, be")])
def test_a_second_try_goes_on_where_the_first_broke(broken):
    heard = Heard()
    with FaultServer([broken, say("It is 4, because.")]) as server:
        done = complete(server, on_text=heard)
    assert done.attempts == 2 and heard.joined("text") == done.text == "It is 4, because."


def test_a_second_try_that_says_something_else_is_silent():
    heard = Heard()
    with FaultServer([truncated("It is 5"), say("It is 4, because.")]) as server:
        done = complete(server, on_text=heard)
    assert done.text == "It is 4, because." and heard.joined("text") == "It is 5"


TEXTS = st.text(alphabet="ab <>/\nthink", max_size=12)


@given(
    before=st.sampled_from(["", " \n", "<think>", " <think>", "<thi"]),
    reasoning=TEXTS,
    close=st.sampled_from(["", "</think>", "</thi"]),
    answer=TEXTS,
    cuts=st.lists(st.integers(0, 50)),
    broken_at=st.integers(0, 50),
)
def test_however_a_text_is_cut_a_listener_hears_what_the_whole_text_says(
    before, reasoning, close, answer, cuts, broken_at
):
    from vlm.reasoning import split_reasoning

    text = before + reasoning + close + answer
    heard = Heard()
    told = Told(heard)
    bounds = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    for tried in (pieces[:broken_at], pieces):
        said = Said(told.restart())
        for piece in tried:
            said.add({"choices": [{"delta": {"content": piece}}]})
    want = split_reasoning(text)
    assert said.split() == want
    # A mark that closes what was never opened makes reasoning of a text that was already heard.
    if text.count("</think>") == 0 or (text.lstrip().startswith("<think>") and text.count("</think>") == 1):
        assert (heard.joined("reasoning"), heard.joined("text")) == want


# A model's name


def connect(server, model=None, **options):
    async def main():
        backend = await OpenAIBackend.connect(server.url, model, sleep=Pauses(), **options)
        await backend.close()
        return backend

    return asyncio.run(main())


@pytest.mark.parametrize("said", [{"max_model_len": 512}, {"context_length": 512}, {"meta": {"n_ctx": 512}}])
def test_the_context_is_read_in_every_dialect(said):
    with FaultServer(models=[{"id": "step"} | said]) as server:
        assert connect(server).context == 512


def test_the_only_model_is_found_with_its_context():
    with FaultServer(models=[{"id": "step", "max_model_len": 4096}]) as server:
        backend = connect(server)
        assert (backend.name, backend.context) == ("step", 4096)
        assert connect(server, context=100).context == 100
        named = connect(server, "other")
        assert (named.name, named.context) == ("other", None)
    named = connect(server, "other")  # no server at all: the first call will say so
    assert named.name == "other"


@pytest.mark.parametrize("models, words", [([], "lists 0 models (none)"), ([{"id": "a"}, {"id": "b"}], "(a, b)")])
def test_none_or_several_models_are_a_question_to_the_user(models, words):
    with FaultServer(models=models) as server, pytest.raises(BackendError, match="name the one to use") as caught:
        connect(server)
    assert words in str(caught.value)


def test_no_server_to_ask_for_a_model_is_fatal():
    with FaultServer() as server:
        server.die()
    with pytest.raises(BackendError, match="failed 3 times") as caught:
        connect(server, retries=2)
    assert caught.value.fatal


@pytest.mark.parametrize(
    "url, options",
    [
        ("localhost:8000/v1", {}),
        ("ftp://host/v1", {}),
        ("http://", {}),
        ("http://[::1/v1", {}),
        ("http://host:99999/v1", {}),
        ("http://host/v1", {"concurrency": 0}),
        ("http://host/v1", {"concurrency": 100_000}),
        ("http://host/v1", {"context": 0}),
        ("http://host/v1", {"retries": -1}),
        ("http://host/v1", {"timeout": 0}),
        ("http://host/v1", {"timeout": float("nan")}),
        ("http://host/v1", {"api_key": "sk-€"}),
        ("http://host/v1", {"api_key": "sk-\n1"}),
    ],
)
def test_arguments_out_of_range_are_one_clear_line(url, options):
    with pytest.raises(BackendError) as caught:
        OpenAIBackend(url, "stub", **options)
    assert "\n" not in str(caught.value) and "sk-" not in str(caught.value)


def test_messages_carry_no_password():
    backend = OpenAIBackend("http://me:secret@127.0.0.1:1/v1", "stub", retries=0)
    with pytest.raises(BackendError) as caught:
        asyncio.run(backend.complete(QUESTION, Sampling()))
    assert "secret" not in str(caught.value) and "127.0.0.1:1" in str(caught.value)


# Nothing is paid twice


def test_cancelling_stops_the_work_at_the_server():
    async def main(server):
        backend = OpenAIBackend(server.url, "stub")
        calls = [asyncio.ensure_future(backend.complete(QUESTION, Sampling())) for _ in range(4)]
        while len(server.calls) < 4:
            await asyncio.sleep(0.005)
        for call in calls[1:]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        await backend.complete(QUESTION, Sampling())
        await backend.close()
        return done

    with FaultServer(lambda call: say(delay=0.2) if call.number == 0 or call.number > 3 else hang()) as server:
        done = asyncio.run(main(server))
    assert done[0].text == "4" and all(isinstance(other, asyncio.CancelledError) for other in done[1:])
    assert server.gone == 3 and len(server.calls) == 5


RUN = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from pacore.backends import Sampling
from pacore.journal import Journal, trajectory_key
from pacore.openai_backend import OpenAIBackend

async def main(url, path):
    backend, journal = OpenAIBackend(url, "stub"), Journal(path)
    conversation = [{"role": "user", "content": "What is 2 + 2?"}]

    async def one(seed):
        sampling = Sampling(seed=seed)
        key = trajectory_key(conversation, sampling, backend="stub", problem="p", round=0, index=seed)
        work = lambda: backend.complete(conversation, sampling)
        await journal.once(key, problem="p", round=0, index=seed, work=work)
        print(seed, flush=True)

    await asyncio.gather(*(one(seed) for seed in range(12)))

asyncio.run(main(*sys.argv[1:3]))
"""


def test_a_run_killed_in_the_middle_pays_only_for_what_is_missing(tmp_path):
    """kill -9 of the client: calls are counted at the server."""
    answering = [True]

    def script(call):
        return say(str(call.body["seed"])) if call.body["seed"] < 8 or not answering[0] else hang()

    async def resume(server):
        backend, journal = OpenAIBackend(server.url, "stub"), Journal(tmp_path / "j", lease=0.3)

        async def one(seed):
            sampling = Sampling(seed=seed)
            key = trajectory_key(QUESTION, sampling, backend="stub", problem="p", round=0, index=seed)
            work = lambda: backend.complete(QUESTION, sampling)  # noqa: E731
            return await journal.once(key, problem="p", round=0, index=seed, work=work)

        done = await asyncio.gather(*(one(seed) for seed in range(12)))
        await backend.close()
        totals = journal.totals()
        journal.close()
        return done, totals

    with FaultServer(script) as server:
        command = [sys.executable, "-c", RUN, server.url, str(tmp_path / "j"), str(ROOT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            said = {int(run.stdout.readline()) for _ in range(8)}
            while len(server.calls) < 12:
                time.sleep(0.01)
            os.kill(run.pid, signal.SIGKILL)
        assert said == set(range(8)) and len(server.calls) == 12
        answering[0] = False
        done, totals = asyncio.run(resume(server))
    assert [entry.text for entry in done] == [str(seed) for seed in range(12)]
    assert sorted(call.body["seed"] for call in server.calls[12:]) == [8, 9, 10, 11]
    assert [(total.finished, total.completion_tokens) for total in totals] == [(12, 36)]
