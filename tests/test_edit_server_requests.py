"""What clients ask of the editor's endpoint: understood, or refused in one clear line that names the field."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest
from edit_endpoint import (
    PATH,
    PICTURE,
    PROMPT,
    QUICK,
    app_of,
    base64_of,
    data_url,
    encoded,
    picture_of,
    same,
    send_form,
    send_json,
)  # fmt: skip
from endpoint import call, refusal
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_editor import draws, make_pipeline
from small_vlm import noise

from edit.requests import Limits, decode, parse
from vlm.receiving import RequestError


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def app(pipeline):
    return app_of(pipeline, Limits(per_minute=None))


# The ways to ask


def test_form_and_json_ask_for_the_same(app, pipeline):
    expected = pipeline(
        noise(24, 32), PROMPT, generator=draws(3), num_inference_steps=1, guidance_scale=1
    ).images[0]  # fmt: skip
    wrapped = base64.encodebytes(PICTURE).decode()  # as the `base64` program writes it
    for response in (
        send_form(app),
        send_form(app, {"image[]": ("a.png", PICTURE)}),
        send_form(app, {"image": (None, data_url(PICTURE))}),
        send_json(app),
        send_json(app, wrapped),
        send_json(app, data_url(PICTURE)),
        send_json(app, [data_url(PICTURE)]),
        send_json(app, {"image_url": data_url(PICTURE)}),
        call(app, {"prompt": PROMPT, "images": [{"image_url": data_url(PICTURE)}]} | QUICK, path=PATH),
    ):
        assert response.status_code == 200, response.text
        (entry,) = response.json()["data"]
        assert entry["seed"] == 3 and same(picture_of(entry), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"steps": 2},
        {"num_inference_steps": 2},
        {"guidance_scale": 5},
        {"guidance_scale": 5, "negative_prompt": "blue"},
        {"strength": 0.5, "steps": 2},
        {"prompt": "make it blue"},
    ],
)
def test_every_field_reaches_the_pipeline(app, pipeline, change):
    asked = {"num_inference_steps": 1} | QUICK | change
    seed, steps, prompt = asked.pop("seed"), asked.pop("steps"), asked.pop("prompt", PROMPT)
    if "num_inference_steps" not in change:
        asked["num_inference_steps"] = steps
    expected = pipeline(noise(24, 32), prompt, generator=draws(seed), **asked).images[0]
    for response in (send_form(app, **change), send_json(app, **change)):
        (entry,) = response.json()["data"]
        assert same(picture_of(entry), expected) and entry["seed"] == seed
    assert not same(expected, picture_of(send_form(app).json()["data"][0]))


def test_what_is_left_out_is_the_editors_own(app, pipeline):
    (entry,) = send_form(app, steps=None, guidance_scale=None, seed=None).json()["data"]
    expected = pipeline(noise(24, 32), PROMPT, generator=draws(entry["seed"])).images[0]
    assert same(picture_of(entry), expected)
    (another,) = send_form(app, seed=None).json()["data"]
    assert entry["seed"] != another["seed"]  # drawn, and told so that it can be asked for


def test_clients_say_in_many_ways_that_nothing_is_meant(app):
    fields = {"n": "", "size": "auto", "background": "auto", "quality": "auto", "response_format": "b64_json",
              "model": "mini", "user": "me", "stream": "false", "mask": "", "partial_images": "0"}  # fmt: skip
    assert send_form(app, **fields).json()["data"] == send_form(app).json()["data"]
    fields = {"n": 1, "background": "opaque", "stream": False, "unknown": [1]}
    assert send_json(app, **fields).json()["data"] == send_form(app).json()["data"]


@pytest.mark.parametrize(
    ("kind", "options", "smaller"),
    [("PNG", {}, None), ("JPEG", {"quality": 100}, 30), ("WEBP", {"quality": 100}, 30)],
)
def test_the_format_of_the_answer(app, kind, options, smaller):
    plain = picture_of(send_form(app).json()["data"][0])
    body = send_form(app, output_format=kind.lower()).json()
    result = base64.b64decode(body["data"][0]["b64_json"])
    assert body["output_format"] == kind.lower() and result == encoded(plain, kind, **options)
    if smaller:
        small = send_form(app, output_format=kind.lower(), output_compression=smaller).json()["data"][0]["b64_json"]
        assert base64.b64decode(small) == encoded(plain, kind, quality=smaller) and len(small) < len(base64_of(result))


def test_the_size_of_the_answer(app):
    for size, expected in ((None, (24, 32)), ("auto", (24, 32)), ("24x32", (24, 32)), ("48x64", (48, 64)),
                           ("10x13", (10, 13)), ("1x1", (1, 1))):  # fmt: skip
        body = send_form(app, size=size).json()
        assert picture_of(body["data"][0]).size == expected and body["size"] == f"{expected[0]}x{expected[1]}"
    message = refusal(send_form(app, size="64x64"), 400)["message"]
    assert "would distort a picture of 24x32" in message and "48x64" in message
    assert send_form(app, size="48x64").status_code == 200


# What is refused


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": " \n"}, "prompt", "the prompt is empty"),
        ({"prompt": ["a", "b"]}, "prompt", "valid string"),
        ({"prompt": "x" * 32_001}, "prompt", "at most 32000 characters"),
        ({"prompt": "x" * 200}, None, "shorten the instruction"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 11}, "n", "at most 10"),
        ({"n": "two"}, "n", "integer"),
        ({"size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"size": "0x10"}, "size", "WIDTHxHEIGHT"),
        ({"size": "99999x99999"}, "size", "at most 25,000,000 pixels"),
        ({"steps": 0}, "steps", "greater than or equal to 1"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"num_inference_steps": 101}, "num_inference_steps", "at most 100"),
        ({"strength": 0}, "strength", "greater than 0"),
        ({"strength": 1.5}, "strength", "less than or equal to 1"),
        ({"guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"plan": "perhaps"}, "plan", "boolean"),
        ({"reflections": 11}, "reflections", "less than or equal to 10"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 50}, "output_compression", "a PNG loses nothing"),
        ({"output_compression": 101, "output_format": "webp"}, "output_compression", "less than or equal to 100"),
        ({"partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"response_format": "url"}, "response_format", 'send "b64_json"'),
        ({"background": "transparent"}, "background", "not supported"),
        ({"quality": "high"}, "quality", "not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(app, fields, param, words):
    for send in (send_form, send_json):
        error = refusal(send(app, **fields), 400)
        assert error["param"] == param and words in error["message"]


def test_a_stream_is_of_one_edit(app):
    for response in (send_form(app, n=2, stream="true"), send_json(app, n=2, stream=True)):
        error = refusal(response, 400)
        assert error["param"] == "n" and "a stream shows one edit" in error["message"]


def test_other_models_are_not_here(app):
    for send in (send_form, send_json):
        error = refusal(send(app, model="gpt-image-1"), 404)
        assert error["code"] == "model_not_found" and "'mini'" in error["message"]


def test_one_picture_and_no_mask(app):
    two = [("image[]", ("a.png", PICTURE)), ("image[]", ("b.png", PICTURE))]
    for response in (send_form(app, two), send_json(app, [base64_of(PICTURE)] * 2)):
        error = refusal(response, 400)
        assert error["param"] == "image" and "2 pictures were sent" in error["message"]
    for response in (send_form(app, {"other": (None, "x")}), send_json(app, [])):
        assert "there is no picture" in refusal(response, 400)["message"]
    for name in ("mask", "prompt"):
        files = {"image": ("a.png", PICTURE), name: ("m.png", PICTURE)}
        error = refusal(send_form(app, files), 400)
        assert error["param"] == name and error["code"] == "unsupported"
    assert refusal(send_json(app, mask={"image_url": data_url(PICTURE)}), 400)["param"] == "mask"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("https://a.example/x.png", "does not fetch"),
        ("file:///etc/passwd", "does not fetch"),
        ("/etc/passwd", "not base64"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,ä", "not base64"),
        ({"file_id": "file-1"}, "no files are kept here"),
        ({"image_url": 7}, "send a file"),
        (7, "send a file"),
    ],
)
def test_a_picture_is_sent_not_pointed_to(app, image, words):
    assert words in refusal(send_json(app, image), 400)["message"]


def test_a_body_of_another_type_is_refused(app):
    for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": kind} if kind else {}
        assert "multipart/form-data" in refusal(call(app, path=PATH, content=b"x", headers=headers), 415)["message"]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x; charset=punycode"):
        response = call(app, path=PATH, content=b"--y", headers={"Content-Type": kind})
        refusal(response, 400)
    many = {f"f{number}": "x" for number in range(101)}
    error = refusal(send_form(app, **many), 400)
    assert error["code"] == "invalid_form" and "Too many fields" in error["message"]
    assert refusal(call(app, b"[]", path=PATH), 400)["code"] == "invalid_json"


# Pictures


def animated(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def rotated():
    """Lies on its side; upright it is 4 wide and 6 high, its top red."""
    picture = Image.new("RGB", (6, 4), "blue")
    picture.paste("red", (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture, "PNG", exif=exif)


def declared(width, height):
    """A PNG that says it is so large and holds nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


RED, WHITE = (255, 0, 0), (255, 255, 255)
PALETTE = Image.new("P", (6, 4), 0)
PALETTE.putpalette([*RED, *WHITE])

READ = {
    "a single pixel": (encoded(Image.new("RGB", (1, 1), "red")), (1, 1), RED),
    "CMYK": (encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG", quality=100), (6, 4), RED),
    "a palette": (encoded(PALETTE), (6, 4), RED),
    "a transparent palette": (encoded(PALETTE, transparency=0), (6, 4), WHITE),
    "transparency": (encoded(Image.new("RGBA", (6, 4), (255, 0, 0, 0))), (6, 4), WHITE),
    "16 bits": (encoded(Image.fromarray(np.full((4, 6), 65535, np.uint16))), (6, 4), WHITE),
    "an animated GIF": (animated("GIF"), (6, 4), RED),
    "an animated WebP": (animated("WEBP"), (6, 4), RED),
    "on its side": (rotated(), (4, 6), RED),
    "a TIFF": (encoded(Image.new("RGB", (6, 4), "red"), "TIFF"), (6, 4), RED),
}

REFUSED = {
    "nothing": (b"", "0 bytes are no picture"),
    "half of it": (encoded(noise(40, 40))[:-1000], "is damaged"),
    "its first bytes": (PICTURE[:20], "20 bytes are no picture"),
    "text": (b"this is text, and its name is a.png", "are no picture that can be read"),
    "a huge size declared": (declared(20_000, 20_000), "has too many pixels|has 20000x20000 pixels"),
    "more pixels than may be": (encoded(Image.new("1", (1001, 1000))), "has 1001x1000 pixels"),
    "EPS": (encoded(noise(6, 4), "EPS"), "are no picture that can be read"),  # Pillow would start Ghostscript
    "PDF": (encoded(noise(6, 4), "PDF"), "are no picture that can be read"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "are no picture that can be read"),
    "a line": (encoded(noise(170, 10)), "16 times as long"),
}


@pytest.mark.parametrize("name", READ)
def test_odd_pictures_are_read(app, name):
    data, size, colour = READ[name]
    limits = Limits()
    seen = decode(parse({"image": data, "prompt": PROMPT}, False, "mini", limits), limits)
    assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("RGB", size, colour)
    response = send_form(app, data)
    assert response.status_code == 200, response.text
    assert picture_of(response.json()["data"][0]).size == size


@pytest.mark.parametrize("name", REFUSED)
def test_bad_pictures_are_refused_in_one_line(pipeline, name):
    data, words = REFUSED[name]
    app = app_of(pipeline, Limits(pixels=1_000_000))
    for response in (send_form(app, data), send_json(app, data_url(data)), send_form(app, data, stream="true")):
        error = refusal(response, 400)
        assert any(part in error["message"] for part in words.split("|"))
        assert error["param"] == "image" and error["code"] in (
            "invalid_picture",
            "picture_too_large",
            "picture_too_long",
        )


def test_a_picture_of_too_many_bytes_and_a_webp_too_long(pipeline):
    app = app_of(pipeline, Limits(picture_bytes=1000))
    for response in (send_form(app), send_json(app)):
        assert "more than 1,000 bytes" in refusal(response, 400)["message"]
    limits = Limits()
    tall = encoded(Image.new("1", (1200, 16_384)))
    for output_format in ("png", "webp"):
        asked = parse({"image": tall, "prompt": PROMPT, "output_format": output_format}, True, "mini", limits)
        if output_format == "png":
            assert decode(asked, limits).height == 16_384
        else:
            with pytest.raises(RequestError, match="16,383 pixels at most"):
                decode(asked, limits)


# Anything


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
IMAGE = st.sampled_from([base64_of(PICTURE), data_url(PICTURE), [data_url(PICTURE)]]) | JSON
FIELDS = {
    "image": IMAGE, "images": IMAGE, "prompt": st.text(max_size=9), "n": st.integers(-1, 3), "seed": st.integers(),
    "size": st.text(max_size=5), "steps": st.integers(-1, 2), "strength": st.floats(), "guidance_scale": st.floats(),
    "stream": st.booleans(), "partial_images": st.integers(-1, 4), "mask": JSON, "unknown": JSON,
    "output_format": st.sampled_from(["png", "webp", "gif"]), "output_compression": st.integers(-1, 101),
}  # fmt: skip
CHANGES = st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] | JSON for name in names})
)
PART = b"--b\r\nContent-Disposition: form-data; name="
FORM = PART + b'"prompt"\r\n\r\nred\r\n' + PART + b'"image"; filename="a.png"\r\n\r\n' + PICTURE + b"\r\n--b--\r\n"


@given(CHANGES)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_no_json_breaks_the_server(app, changes):
    response = call(app, json.dumps({"prompt": PROMPT, "image": base64_of(PICTURE)} | QUICK | changes), path=PATH)
    event(f"status {response.status_code}")
    if response.status_code != 200:
        refusal(response, 400)


CHARSETS = st.sampled_from(["utf-8", "latin-1", "hex", "punycode", "idna", "undefined", "utf-16", "no-such", ""])


@given(st.integers(0, len(FORM)), st.integers(0, 40), st.binary(max_size=8), CHARSETS)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_no_form_breaks_the_server(app, start, length, instead, charset):
    """A form with some of its bytes replaced."""
    kind = "multipart/form-data; boundary=b" + (
        f"; charset={charset}" if charset.isascii() and charset.isalnum() else ""
    )
    body = FORM[:start] + instead + FORM[start + length :]
    response = call(app, path=PATH, content=body, headers={"Content-Type": kind})
    event(f"status {response.status_code}")
    if response.status_code != 200:
        assert response.status_code in (400, 404)
        refusal(response, response.status_code)
