"""Calls of the OpenAI backend to a `FaultServer`, without the pauses between their tries."""

import asyncio
import random

import pytest

from pacore.backends import BackendError, Sampling
from pacore.openai_backend import OpenAIBackend

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


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
