"""The endpoint's limits: bodies, keys, requests a minute and at a time; and its counters."""

import asyncio
import json
import re
import time
from types import SimpleNamespace

import httpx
import pytest
from endpoint import QUESTION, Scripted, app_of, ask, call, metric, refusal, until

import vlm.serving
from pacore.coordination import Plan
from pacore.requests import Limits

# Bodies


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
    monkeypatch.setattr("vlm.receiving.BODY_SECONDS", 0.05)

    async def pieces():
        yield b"{"
        await asyncio.sleep(5)

    refusal(call(app_of(), content=pieces(), headers={"Content-Type": "application/json"}), 408)


# Keys and rates


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
    monkeypatch.setattr(vlm.serving, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
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


# Turns


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


# Counters


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
