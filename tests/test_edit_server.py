"""The editor's endpoint: the official client, streams, turns, clients that go away, and `python -m edit serve`."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import torch
from edit_endpoint import (
    PATH,
    PICTURE,
    PROMPT,
    QUICK,
    app_of,
    events,
    picture_of,
    same,
    send_form,
    send_json,
    watched,
)
from endpoint import call, refusal, served, until
from small_editor import draws, make_pipeline
from small_vlm import noise

import edit.__main__
import edit.answers
import vlm.serving
from edit.requests import Limits


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def address(pipeline):
    with served(app_of(pipeline, api_key="right")) as address:
        yield address


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="right", max_retries=0) as client:
        yield client


def expected(pipeline, *seeds, **call):
    return pipeline(noise(24, 32), PROMPT, generator=draws(*seeds), num_images_per_prompt=len(seeds), **call).images


# The official client


def test_the_official_client(client, pipeline, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(PICTURE)
    before = time.time()
    with path.open("rb") as file:
        answer = client.images.edit(
            image=file, prompt=PROMPT, n=2, size="auto", response_format="b64_json", extra_body={"seed": 3}
        )
    assert before - 2 < answer.created < time.time() + 2
    assert (answer.output_format, answer.size, answer.background) == ("png", "24x32", "opaque")
    assert [entry.seed for entry in answer.data] == [3, 4]
    for entry, picture in zip(answer.data, expected(pipeline, 3, 4), strict=True):
        assert same(picture_of(entry.to_dict()), picture)
    # Edited in 28x36 pixels, 7 x 9 tokens; the words are told a token a byte.
    usage = answer.usage
    assert (usage.input_tokens_details.image_tokens, usage.input_tokens_details.text_tokens) == (63, len(PROMPT))
    assert (usage.output_tokens, usage.total_tokens) == (2 * 63, 3 * 63 + len(PROMPT))
    assert [model.id for model in client.models.list()] == ["mini"]


def test_the_official_client_is_told_what_is_wrong(client):
    with pytest.raises(openai.BadRequestError, match="2 pictures were sent") as refused:
        client.images.edit(image=[PICTURE, PICTURE], prompt=PROMPT)
    assert refused.value.param == "image"
    with pytest.raises(openai.BadRequestError, match="not supported") as refused:
        client.images.edit(image=PICTURE, mask=PICTURE, prompt=PROMPT)
    assert refused.value.param == "mask" and refused.value.code == "unsupported"
    with pytest.raises(openai.NotFoundError, match="'mini'"):
        client.images.edit(image=PICTURE, prompt=PROMPT, model="gpt-image-2")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.edit(image=PICTURE, prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="shorten the instruction"):
        list(client.images.edit(image=PICTURE, prompt="x" * 200, stream=True))


def test_the_official_client_streams(client, pipeline):
    options = {"extra_body": {"seed": 3, "steps": 4}, "output_format": "webp", "size": None}
    stream = client.images.edit(image=[PICTURE], prompt=PROMPT, stream=True, partial_images=2, **options)
    *partial, last = list(stream)
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert last.type == "image_edit.completed" and last.usage.output_tokens == 63 and last.seed == 3
    pictures = [picture_of(event.to_dict()) for event in (*partial, last)]
    assert {(picture.size, picture.format) for picture in pictures} == {((24, 32), "WEBP")}
    assert {(event.size, event.output_format) for event in (*partial, last)} == {("24x32", "webp")}
    assert not same(pictures[0], pictures[1])
    whole = client.images.edit(image=PICTURE, prompt=PROMPT, **options)
    assert whole.data[0].b64_json == last.b64_json


# Streams


def test_a_partial_picture_is_what_the_step_expects(pipeline):
    seen = []

    def keep(running, step, timestep, tensors):
        seen.append(running.preview(tensors["denoised"])[0].resize((24, 32), 1))
        return {}

    call = {"num_inference_steps": 4, "guidance_scale": 1, "callback_on_step_end_tensor_inputs": ("denoised",)}
    (result,) = expected(pipeline, 3, callback_on_step_end=keep, **call)
    for send, yes in ((send_form, "true"), (send_json, True)):
        *partial, last = events(send(app_of(pipeline), steps=4, stream=yes, partial_images=1))
        assert len(partial) == 1 and same(picture_of(partial[0]), seen[1])
        assert same(picture_of(last), result)


@pytest.mark.parametrize(
    ("steps", "wanted", "shown"),
    [(4, 3, [1, 2, 3]), (28, 3, [7, 14, 21]), (28, 1, [14]), (28, 0, []), (2, 3, [1]), (1, 3, []), (3, 1, [2])],
)
def test_partial_pictures_are_spread_over_the_steps(steps, wanted, shown):
    due = [edit.answers._due(done, steps, wanted) for done in range(steps + 1)]
    grows = [done for done in range(1, steps + 1) if due[done] > due[done - 1]]
    assert grows == shown


def test_a_stream_as_it_is_sent(pipeline):
    response = send_json(app_of(pipeline), stream=True)
    assert events(response)[0]["quality"] == "auto" and response.headers["cache-control"] == "no-store"
    head, data = response.text.removesuffix("\n\n").split("\n")
    assert head == "event: image_edit.completed" and data.startswith('data: {"type": "image_edit.completed"')


def test_a_silent_stream_is_kept_open(pipeline, monkeypatch):
    monkeypatch.setattr(vlm.serving, "KEEP_ALIVE_SECONDS", 0.02)
    with watched(pipeline, seconds=0.2):
        response = send_json(app_of(pipeline), stream=True)
    assert response.text.count(": still working\n\n") >= 2
    assert [event["type"] for event in events(response)] == ["image_edit.completed"]


# Thinking


def test_plan_and_reflection_are_told(pipeline, monkeypatch):
    answers = ["the box", "retry, too dark", "accept", "the box", "retry", "roll back"]
    monkeypatch.setattr(edit.answers, "own_model", lambda pipeline: lambda conversation: answers.pop(0))
    body = send_json(app_of(pipeline), n=2, plan=True, reflect=True, reflections=2, guidance_scale=None, steps=None)
    first, second = body.json()["data"]
    told = f"{PROMPT} the box"
    assert (first["revised_prompt"], first["seed"], second["seed"]) == (told, 4, 6)  # 3 and 5 were tried again
    assert first["verdicts"] == [
        {"decision": "retry", "words": "retry, too dark"}, {"decision": "accept", "words": "accept"}
    ]  # fmt: skip
    assert [verdict["decision"] for verdict in second["verdicts"]] == ["retry", "roll back"]
    assert same(picture_of(first), pipeline(noise(24, 32), told, generator=draws(4)).images[0])
    assert same(picture_of(second), noise(24, 32))
    usage = body.json()["usage"]
    assert usage["output_tokens"] == 4 * 63 and usage["input_tokens_details"]["text_tokens"] == len(told)
    plain = send_json(app_of(pipeline)).json()["data"][0]
    assert not plain.keys() & {"revised_prompt", "verdicts"}


def test_the_editors_own_model_thinks(pipeline, monkeypatch):
    own = edit.answers.own_model
    monkeypatch.setattr(edit.answers, "own_model", lambda pipeline: own(pipeline, max_new_tokens=4))
    (entry,) = send_json(app_of(pipeline), plan=True).json()["data"]
    assert entry["revised_prompt"].startswith(PROMPT)


# Limits


def test_the_key_opens_everything_and_health_needs_none(pipeline):
    app = app_of(pipeline, api_key="s3cret")
    key = {"Authorization": "Bearer s3cret"}
    refusal(send_form(app), 401)
    refusal(call(app, method="GET", path="/v1/models"), 401)
    assert send_form(app, headers=key).status_code == 200
    assert call(app, method="GET", path="/v1/models", headers=key).json()["data"][0]["id"] == "mini"
    assert call(app, method="GET", path="/health").json() == {"status": "ok", "model": "mini"}
    assert refusal(call(app, path="/v1/images/generations"), 404)["message"].endswith("see POST /v1/images/edits.")


def test_a_body_is_counted_while_it_arrives(pipeline):
    sent = []

    async def pieces():
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(1000):
            sent.append(1)
            yield b"a" * 1000

    app = app_of(pipeline, Limits(body_bytes=10_000))
    for kind in ("multipart/form-data; boundary=b", "application/json"):
        sent.clear()
        response = call(app, path=PATH, content=pieces(), headers={"Content-Type": kind})
        assert "10,000 bytes" in refusal(response, 413)["message"] and len(sent) < 20
    refusal(send_form(app, b"a" * 10_001), 413)


def test_a_page_of_another_server_may_not_send_forms(pipeline):
    app = app_of(pipeline)
    for origin in ("https://evil.example", "null", "http://pacore.evil.example", "http://pacore:81"):
        error = refusal(send_form(app, headers={"Origin": origin}), 403)
        assert error["code"] == "foreign_page"
    assert send_form(app, headers={"Origin": "http://pacore"}).status_code == 200  # `call`'s own host


def test_limits_that_make_no_sense_are_refused():
    for name in ("pixels", "per_minute", "steps"):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})
    assert Limits(queue=0, per_minute=None).queue == 0


# Failures


def test_a_mistake_of_our_own_is_an_error_without_its_details(pipeline, caplog):
    app = app_of(pipeline)
    with watched(pipeline, fails_at=1, error=KeyError("/secret/path")):
        response = send_form(app, raise_app_exceptions=False)
    assert refusal(response, 500)["type"] == "server_error" and "secret" not in response.text
    with watched(pipeline, fails_at=3, error=KeyError("/secret/path")):
        response = send_json(app, steps=4, stream=True, partial_images=3)
    *partial, last = events(response)
    assert len(partial) == 2 and last["error"]["type"] == "server_error" and "secret" not in response.text
    assert "event: error\n" in response.text and "/secret/path" in caplog.text
    assert send_form(app).status_code == 200


def test_a_device_without_memory_is_said(pipeline):
    app = app_of(pipeline)
    with watched(pipeline, fails_at=1, error=torch.OutOfMemoryError("CUDA out of memory")):
        response = send_form(app)
    assert refusal(response, 503)["code"] == "out_of_memory" and response.headers["x-should-retry"] == "false"


def test_the_official_client_sees_a_stream_that_fails(client, pipeline):
    options = {"image": PICTURE, "prompt": PROMPT, "stream": True, "partial_images": 3, "extra_body": {"steps": 4}}
    with watched(pipeline, fails_at=3, error=KeyError("x")), pytest.raises(openai.APIError, match="made a mistake"):
        list(client.images.edit(**options))


# Turns


def form_bytes(stream=False) -> bytes:
    """A whole request of 100 steps, as a socket takes it."""
    fields = {"prompt": PROMPT, "steps": "100", "guidance_scale": "1"} | ({"stream": "true"} if stream else {})
    request = httpx.Request("POST", f"http://x{PATH}", data=fields, files={"image": ("a.png", PICTURE)})
    body = request.read()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(address, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    client.sendall(data)
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_work(pipeline, stream):
    async def scenario(address):
        with watched(pipeline, held=True) as steps:
            working = connect(address, form_bytes(stream))
            await until(lambda: steps.begun == 1)
            working.close()
            await asyncio.sleep(0.2)
            steps.released.set()
            await until(lambda: pipeline.interrupt)
            # The thread is free for the next one, and did not go on with the first.
            after = await asyncio.to_thread(post, address)
            assert after.status_code == 200 and steps.begun < 20, steps.begun

    def post(address):
        fields = {"prompt": PROMPT} | QUICK
        return httpx.post(f"{address}{PATH}", data=fields, files={"image": ("a.png", PICTURE)}, timeout=60)

    with served(app_of(pipeline, Limits(queue=1))) as address:
        asyncio.run(scenario(address))


def test_one_works_some_wait_and_the_others_are_sent_away(pipeline):
    app = app_of(pipeline, Limits(queue=1))

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:

            def post(seed):
                fields = {"prompt": PROMPT} | QUICK | {"seed": seed}
                return asyncio.create_task(client.post(PATH, data=fields, files={"image": ("a.png", PICTURE)}))

            with watched(pipeline, held=True) as steps:
                first = post(1)
                await until(lambda: steps.begun == 1)
                second = post(2)
                third = None
                while third is None or third.status_code == 200:  # until the second has its place
                    third = await post(3)
                assert refusal(third, 429)["code"] == "busy" and int(third.headers["retry-after"]) > 0
                assert steps.begun == 1
                steps.released.set()
                seeds = [(await one).json()["data"][0]["seed"] for one in (first, second)]
            assert seeds == [1, 2] and steps.begun == 2

    asyncio.run(scenario())


def test_nobody_waits_longer_than_the_limit(pipeline):
    app = app_of(pipeline, Limits(queue_seconds=1))

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            fields = {"data": {"prompt": PROMPT} | QUICK, "files": {"image": ("a.png", PICTURE)}}
            with watched(pipeline, held=True) as steps:
                first = asyncio.create_task(client.post(PATH, **fields))
                await until(lambda: steps.begun == 1)
                second = await client.post(PATH, **fields)
                assert "no turn came within 1 s" in refusal(second, 429)["message"]
                steps.released.set()
                assert (await first).status_code == 200

    asyncio.run(scenario())


# The command


@pytest.fixture
def signals():
    """The handlers that the command sets are the process's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, tests among them
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def run_command(monkeypatch, work, *arguments) -> int:
    """Its exit code; `work` is done with its address in another thread, which then stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, failures = f"http://127.0.0.1:{port}", []

    def visit():
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                time.sleep(0.02)
            work(address)
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    code = edit.__main__.main(["serve", "--port", str(port), *arguments])
    visitor.join(60)
    assert not failures, failures
    return code


def test_serve_from_a_folder_until_sigterm(pipeline, tmp_path, monkeypatch, capsys, signals):
    pipeline.save_pretrained(tmp_path / "brush")
    monkeypatch.setenv("OWN_KEY", "right")
    answers = []

    def work(address):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        with openai.OpenAI(base_url=f"{address}/v1", api_key="right", max_retries=0) as client:
            answers.append(client.images.edit(image=PICTURE, prompt=PROMPT, model="brush", extra_body={"seed": 3}))
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = ("--model", str(tmp_path / "brush"), "--key-variable", "OWN_KEY")
    assert run_command(monkeypatch, work, *arguments) == 130
    assert capsys.readouterr().out.startswith("brush at http://127.0.0.1:")
    picture = np.asarray(picture_of(answers[0].data[0].to_dict()), dtype=int)
    assert np.abs(picture - np.asarray(expected(pipeline, 3)[0], dtype=int)).max() <= 1


def test_ctrl_c_ends_an_edit_that_runs(pipeline, monkeypatch, capsys, signals):
    monkeypatch.setattr(edit.__main__, "load_editor", lambda model: pipeline)
    monkeypatch.setattr(vlm.serving, "STOP_SECONDS", 0.1)
    monkeypatch.delenv("TRIPTYCH_API_KEY", raising=False)
    told = []

    def work(address):
        client = connect(address, form_bytes())
        while not steps.begun:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        told.append(client.makefile().read())

    with watched(pipeline, seconds=0.02) as steps:
        assert run_command(monkeypatch, work) == 130
    head, _, body = told[0].partition("\n\n")
    assert head.startswith("HTTP/1.1 503") and json.loads(body)["error"]["code"] == "stopping"
    assert steps.begun < 100
    assert "open to all: no TRIPTYCH_API_KEY" in capsys.readouterr().out


def test_an_editor_that_is_not_there_is_one_line(capsys):
    assert edit.__main__.main(["serve", "--model", "no-such-folder"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no folder 'no-such-folder'") and error.count("\n") == 1
