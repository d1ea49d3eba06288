"""Pictures sent to the endpoint: by data URL, and from the web only where it is allowed and public."""

import asyncio
import base64
import re

import pytest
from endpoint import app_of, ask, picture_url, plans, refusal, with_picture

import pacore.pictures
from pacore.fetching import FetchError
from pacore.requests import Limits


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
