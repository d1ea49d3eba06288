"""What the OpenAI backend sends, whom it sends it to, and what it refuses to send."""

import asyncio
import base64
import io

import pytest
from fault_server import FaultServer
from openai_calls import QUESTION, Pauses, both, complete
from PIL import Image

from pacore.backends import BackendError, Sampling
from pacore.openai_backend import OpenAIBackend

pytestmark = pytest.mark.usefixtures("one_ssl_context")

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
