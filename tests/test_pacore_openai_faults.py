"""What the OpenAI backend makes of a server that fails in every way a server can: which faults pass, and which stay."""

import asyncio

import pytest
from fault_server import FaultServer, hang, raw, reset, say, status, trickle, truncated
from openai_calls import QUESTION, Pauses, both, calls_of, complete, complete_all

from pacore.backends import BackendError, Sampling
from pacore.openai_backend import OpenAIBackend

pytestmark = pytest.mark.usefixtures("one_ssl_context")

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
    "code, fatal",
    [(400, False), (401, True), (402, True), (403, True), (404, True), (405, True), (413, False), (422, False)],
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


@pytest.mark.parametrize("name", ["model_not_found", "invalid_model"])
@pytest.mark.parametrize("key", ["code", "type"])
def test_a_model_that_is_not_there_is_known_by_its_name_in_a_400(name, key):
    with FaultServer([status(400, body={"error": {"message": "no model 'x'", key: name}})]) as server:
        error = complete(server)
    assert error.fatal and "HTTP 400: no model 'x'; check the model's name" in str(error) and len(server.calls) == 1


@pytest.mark.parametrize("code, fatal", [(400, False), (401, True), (402, True), (403, False), (404, False)])
def test_who_has_answered_once_refuses_one_call_and_not_all_unless_it_is_for_the_key(code, fatal):
    async def main(server):
        backend = OpenAIBackend(server.url, "stub")
        await backend.complete(QUESTION, Sampling())
        with pytest.raises(BackendError) as caught:
            await backend.complete(QUESTION, Sampling())
        again = await backend.complete(QUESTION, Sampling())  # whatever was said, it is asked again
        await backend.close()
        return caught.value, again

    with FaultServer([say("4"), status(code), say("5")]) as server:
        error, again = asyncio.run(main(server))
    assert error.fatal == fatal and again.text == "5" and len(server.calls) == 3


def test_a_list_of_models_is_no_answer_since_some_servers_show_it_to_everybody():
    async def main(server):
        backend = await OpenAIBackend.connect(server.url)
        with pytest.raises(BackendError) as caught:
            await backend.complete(QUESTION, Sampling())
        await backend.close()
        return caught.value

    with FaultServer([status(403)]) as server:
        assert asyncio.run(main(server)).fatal


def test_calls_that_wait_behind_one_that_is_refused_for_all_are_not_sent():
    with FaultServer([status(401, "no such key")]) as server:

        async def main():
            backend = OpenAIBackend(server.url, "stub", concurrency=2)
            calls = [backend.complete(QUESTION, Sampling(seed=seed)) for seed in range(50)]
            done = await asyncio.gather(*calls, return_exceptions=True)
            sent = len(server.calls)
            with pytest.raises(BackendError, match="HTTP 401"):
                await backend.complete(QUESTION, Sampling())  # it may have been mended
            await backend.close()
            return done, sent

        done, sent = asyncio.run(main())
        assert sent <= 2 and len(server.calls) == sent + 1
    assert all(error.fatal and "HTTP 401: no such key; check the API key." in str(error) for error in done)
    assert sorted(error.attempts for error in done) == [0] * (50 - sent) + [1] * sent


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
