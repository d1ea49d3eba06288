"""The endpoint over a socket: the official client, and clients that go away."""

import asyncio
import json
import socket

import httpx
import openai
import pytest
from endpoint import QUESTION, Scripted, app_of, served, until

from pacore.coordination import Plan
from pacore.requests import Limits


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
