"""Trajectories from any server that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp, a hosted one.

The official client carries the bytes; which answers count, and what is tried again, is decided here.
"""

import asyncio
import base64
import contextlib
import io
import math
import os
import random
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from PIL import Image

from pacore.backends import BackendError, Completion, Sampling
from pacore.openai_answers import Model, Models, Said, Told, Usage, read
from pacore.openai_faults import Fault, fault_of
from vlm.pictures import PictureError, open_picture

# The n-th pause is BACKOFF * 2^n seconds, of which half is drawn ("equal jitter"): calls that failed together return
# apart, and each outlives a server that is away for as long as the halves take (15 s with 5 retries).
BACKOFF, MAX_BACKOFF = 0.5, 30.0

# A server may ask for any pause; longer than this is a person's decision, not a program's.
MAX_RETRY_AFTER = 120.0

# A thousand connections to one server.
MAX_CONCURRENCY = 1000

# Connections of one client. It looks at all of them for every call: with a thousand in one pool, a call costs three
# times the processor time that it costs with this many.
POOL = 64

# Seconds in which a server has to list its models, which it knows without any work.
LISTING_TIMEOUT = 10.0

# Encoded pictures that are kept: the K trajectories of a round share theirs.
KEPT_PICTURES = 8

# Calls beyond those in flight whose pictures are encoded already, so that no place at the server waits for that.
AHEAD = 32


class OpenAIBackend:
    """A model behind an OpenAI-compatible endpoint; belongs to the event loop that first uses it.

    Attributes:
        name: of the model, as the server knows it.
        context: tokens that prompt and completion may have together; None where unknown.

    Args:
        base_url: of the protocol, e.g. `http://127.0.0.1:8000/v1`.
        model: its name; `connect` asks the server for it.
        api_key: None sends a placeholder, which servers without keys ignore.
        headers: sent with every call.
        concurrency: calls in flight at most. A call that pauses before another try keeps its place, so that a server
            that asks for patience is left alone.
        retries: further tries after a call that failed in passing.
        timeout: seconds a single try may take from sending to the last token, however busily it trickles.
        logprobs: whether to ask for log-probabilities.
        context: when the caller knows it.
        rng, sleep: draw and take the pauses between tries.

    Raises:
        BackendError: an argument is out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        concurrency: int = 16,
        retries: int = 5,
        timeout: float = 600.0,
        logprobs: bool = False,
        context: int | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._server = _server(base_url)
        if not 1 <= concurrency <= MAX_CONCURRENCY:
            raise _misuse(f"the concurrency is {concurrency}; use 1 to {MAX_CONCURRENCY} calls in flight.")
        if retries < 0 or not timeout > 0:
            raise _misuse(f"retries are {retries} and the timeout {timeout} s; use at least 0 and more than 0.")
        if context is not None and context < 1:
            raise _misuse(f"the context is {context} tokens; give at least 1, or leave it out.")
        self.name, self.context = model, context
        api_key = (api_key or "none").strip()
        if not api_key.isascii() or not api_key.isprintable():
            raise _misuse("the API key has characters that no header can carry; copy it again.")
        self._options = {
            "base_url": base_url,
            "api_key": api_key,
            "default_headers": headers,
            "max_retries": 0,
            "timeout": None,  # the client's is a limit for each step; ours is for all of them
        }
        self._clients = [openai.AsyncOpenAI(**self._options)]
        self._calls = [0]  # of each client, those in flight
        self._slots, self._ready = asyncio.Semaphore(concurrency), asyncio.Semaphore(concurrency + AHEAD)
        self._retries, self._timeout, self._logprobs = retries, timeout, logprobs
        self._rng, self._sleep = rng or random.Random(), sleep
        self._answered = False  # ever, by the model; servers list their models to everybody
        self._fatal: list[str] = []  # what the calls said that told of all others
        self._pictures: deque[tuple[weakref.ref, str]] = deque(maxlen=KEPT_PICTURES)
        self._encoding = asyncio.Lock()

    @classmethod
    async def connect(cls, base_url: str, model: str | None = None, **options: Any) -> Self:
        """A backend for `model`, or for the only one the server lists; its context too, where the list has it.

        Raises:
            BackendError: no model was named and the server cannot be reached, or does not list exactly one.
        """
        backend = cls(base_url, model or "?", **options)
        try:
            listed, _ = await backend._persist(backend._list_models, 0 if model else backend._retries)
        except BackendError:
            if model is None:
                await backend.close()
                raise
            return backend  # not every server lists its models, and a call will tell what is wrong
        if model is None:
            if len(listed) != 1:
                await backend.close()
                names = ", ".join(entry.id for entry in listed[:5]) or "none"
                raise _misuse(f"{backend._server} lists {len(listed)} models ({names}); name the one to use.")
            backend.name = listed[0].id
        for entry in listed:
            if entry.id == backend.name and backend.context is None:
                backend.context = entry.context
        return backend

    async def complete(
        self,
        conversation: list[dict],
        sampling: Sampling,
        on_text: Callable[[str, str], None] | None = None,
    ) -> Completion:
        """See `Backend.complete`; the server streams where `on_text` is given.

        What `on_text` was told is never told twice: a second try is silent up to there, and stays silent where it says
        something else. The completion has the last word.

        An empty message is a completion only if the server counts tokens for it; else it is a call that failed.
        """
        told = Told(on_text) if on_text is not None else None
        known = len(self._fatal)
        # Not at once: a thousand calls that wait would hold as many copies of a picture.
        async with self._ready:
            body = self._body(await self._messages(conversation), sampling, stream=on_text is not None)
            async with self._slots:
                if len(self._fatal) > known:  # while this one waited; one that comes later may find it mended
                    raise BackendError(self._fatal[-1], attempts=0, fatal=True)
                started = time.monotonic()
                said, attempts = await self._persist(lambda: self._ask(body, told))
                self._answered = True
        seconds = time.monotonic() - started
        reasoning, text = said.split()
        usage = said.usage or Usage()
        return Completion(
            text=text,
            reasoning=reasoning,
            prompt_tokens=usage.prompt_tokens or self.count_tokens(_words(conversation)),
            completion_tokens=usage.completion_tokens or len(said.logprobs) or self._estimate(said, sampling),
            finish="length" if said.finish in ("length", "max_tokens") else "stop",
            logprobs=tuple(said.logprobs) or None,
            seconds=seconds,
            attempts=attempts,
        )

    def count_tokens(self, text: str) -> int:
        """An estimate, the server's tokenizer being out of reach: four bytes of UTF-8 a token."""
        return math.ceil(len(text.encode("utf-8", "replace")) / 4)

    def _estimate(self, said: Said, sampling: Sampling) -> int:
        """Completion tokens of an answer whose server counts none, as some do not where they stream."""
        estimate = self.count_tokens("".join(said.reasoning + said.content))
        return estimate if sampling.max_tokens is None else min(estimate, sampling.max_tokens)

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))

    # One call, and the next try

    async def _persist(self, call: Callable[[], Awaitable[Any]], retries: int | None = None) -> tuple[Any, int]:
        """(what `call` returned, how often it was tried). Raises BackendError."""
        retries = self._retries if retries is None else retries
        attempt = 1
        while True:
            try:
                return await call(), attempt
            except Fault as fault:
                if not fault.passing or attempt > retries:
                    times = f" {attempt} times, last" if attempt > 1 else ""
                    message = f"{self._server} failed{times}: {fault}; {fault.remedy}."
                    fatal = fault.fatal or (fault.fatal_at_first and not self._answered)
                    if fatal:
                        self._fatal.append(message)
                    raise BackendError(message, attempts=attempt, fatal=fatal) from fault
                backoff = min(MAX_BACKOFF, BACKOFF * 2 ** min(attempt, 16))
                await self._sleep(min(fault.asked, MAX_RETRY_AFTER) + self._rng.uniform(backoff / 2, backoff))
            attempt += 1

    async def _ask(self, body: dict, told: Told | None) -> Said:
        """One try. Raises Fault."""
        said = Said(told.restart() if told is not None else None)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit, contextlib.aclosing(self._receive(body)) as parts:
                async for part in parts:
                    said.add(part)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Fault(f"no whole answer within {self._timeout:g} s", "raise the timeout") from error
        said.check()
        return said

    async def _receive(self, body: dict) -> AsyncIterator[object]:
        """The JSON of the answer, whole or event by event. Raises Fault."""
        # Raw JSON, because the client's own types accept anything without a word.
        try:
            with self._client() as client:
                if "stream" not in body:
                    yield await client.post("/chat/completions", body=body, cast_to=object)
                    return
                stream = await client.post(
                    "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
                )
                async with stream:
                    async for event in stream:
                        yield event
        except Exception as error:  # some of the transport's errors pass the client unwrapped, and share no base
            raise fault_of(error) from error

    @contextlib.contextmanager
    def _client(self) -> Iterator[openai.AsyncOpenAI]:
        """The first client with room for a call, or a new one."""
        place = next((place for place, calls in enumerate(self._calls) if calls < POOL), len(self._calls))
        if place == len(self._clients):
            self._clients.append(openai.AsyncOpenAI(**self._options))
            self._calls.append(0)
        self._calls[place] += 1
        try:
            yield self._clients[place]
        finally:
            self._calls[place] -= 1

    async def _list_models(self) -> list[Model]:
        try:
            async with asyncio.timeout(min(self._timeout, LISTING_TIMEOUT)):
                with self._client() as client:
                    answer = await client.get("/models", cast_to=object)
        except Exception as error:
            raise fault_of(error) from error
        return read(Models, answer).data

    # What is sent

    def _body(self, messages: list[dict], sampling: Sampling, stream: bool) -> dict:
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.top_k > 0:  # not OpenAI's; the servers that know it take it here
            body["top_k"] = sampling.top_k
        if sampling.max_tokens is not None:
            body["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self._logprobs:
            body["logprobs"] = True
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    async def _messages(self, conversation: list[dict]) -> list[dict]:
        """The conversation as the protocol writes it. Raises BackendError: a picture or a part cannot be sent."""
        messages = []
        for turn in conversation:
            content = turn["content"]
            if not isinstance(content, str):
                parts = [await self._part(part) for part in content]
                # Templates of older servers take text alone as a plain string only.
                content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
            messages.append({"role": turn["role"], "content": content})
        return messages

    async def _part(self, part: dict) -> dict:
        if part["type"] == "text":
            return {"type": "text", "text": part["text"]}
        if part["type"] == "image":
            return {"type": "image_url", "image_url": {"url": await self._address(part["image"])}}
        raise BackendError(f"a turn has a part of type {part['type']!r}; use 'text' and 'image'.", attempts=0)

    async def _address(self, picture: Image.Image | str | os.PathLike) -> str:
        """The picture as a `data:` address, encoded once for all that ask at the same time."""
        if isinstance(picture, str) and picture.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")):
            return picture
        async with self._encoding:
            for known, address in self._pictures:
                if known() is picture:
                    return address
            address = await asyncio.to_thread(_encode, picture)
            if isinstance(picture, Image.Image):  # a file may change, an open picture is taken not to
                self._pictures.append((weakref.ref(picture), address))
            return address


def _misuse(message: str) -> BackendError:
    return BackendError(message, attempts=0, fatal=True)


def _server(base_url: str) -> str:
    """What messages call the server: without user, password and query, which are nobody's business. Raises."""
    try:
        address = urlsplit(base_url)
        known = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        known = False
    if not known:
        raise _misuse(f"the base URL is {base_url!r}; give one like http://127.0.0.1:8000/v1.")
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"


def _words(conversation: list[dict]) -> str:
    """The conversation's text; what a picture costs only the server knows."""
    contents = [turn["content"] for turn in conversation]
    return "\n".join(
        content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
        for content in contents
    )


def _encode(picture: Any) -> str:
    """A picture as a `data:` address: an upright JPEG file byte for byte, another as JPEG again, all else as PNG.

    Raises:
        BackendError: it cannot be read.
    """
    try:
        opened = open_picture(picture)
    except PictureError as error:
        raise BackendError(str(error), attempts=0) from error
    photo = False
    if isinstance(picture, str | os.PathLike) and not str(picture).startswith("data:"):
        with Image.open(picture) as file:
            photo = file.format == "JPEG"
            if photo and file.mode in ("RGB", "L") and file.getexif().get(0x0112, 1) == 1:
                with open(picture, "rb") as raw:
                    return _data_address("jpeg", raw.read())
    buffer = io.BytesIO()
    if photo:
        opened.save(buffer, "JPEG", quality=95)
    else:
        opened.save(buffer, "PNG")
    return _data_address("png" if not photo else "jpeg", buffer.getvalue())


def _data_address(kind: str, encoded: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
