"""Trajectories from a model in this process: the rollout engine, driven by a thread of its own.

All calls share the engine's batch, whichever question they belong to; cancelling a call frees its place at the next
token.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from pacore.backends import BackendError, Completion, Sampling
from vlm.answering import ModelError, load
from vlm.pictures import PictureError
from vlm.reasoning import ReasoningSplitter, split_reasoning
from vlm.rollout import Rollout, Row, Sample


class LocalBackend:
    """A model of this project behind the `Backend` protocol.

    Args:
        engine: nobody else may drive it from now on.
        name: what the journal and the server call the model.

    Attributes:
        context: tokens that prompt and completion may have together.
    """

    def __init__(self, engine: Rollout, name: str):
        self.name, self.context = name, engine.context
        # What the checkpoint's own generation config says, where a call says nothing.
        self._max_tokens = engine.model.generation_config.max_new_tokens
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: set[asyncio.Future] = set()
        self._thread = threading.Thread(target=self._drive, name=f"rollout {name}", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, model: str, **options) -> "LocalBackend":
        """Of a model by name, see `vlm.answering.load`; `options` are those of `Rollout`. Raises BackendError."""
        try:
            network, processor = load(model)
        except ModelError as error:
            raise BackendError(str(error), fatal=True) from error
        return cls(Rollout(network, processor, **options), model)

    async def complete(
        self, conversation: list[dict], sampling: Sampling, on_text: Callable[[str, str], None] | None = None
    ) -> Completion:
        """See `Backend.complete`."""
        loop, started = asyncio.get_running_loop(), time.monotonic()
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=self._max_tokens)
        future: asyncio.Future[Sample] = loop.create_future()
        row: Row | None = None
        gone = False
        marks = ReasoningSplitter()

        def in_loop(call: Callable, *values) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(call, *values)

        def settle(result: Sample | BaseException) -> None:
            if not future.done():
                (future.set_exception if isinstance(result, BaseException) else future.set_result)(result)

        def hear(piece: str) -> None:
            for kind, text in marks.split(piece):
                if text and not gone:
                    on_text(kind, text)

        def submit() -> None:  # in the engine's thread
            nonlocal row
            if gone:
                return
            try:
                row = self._engine.submit(
                    conversation,
                    sampling,
                    on_text=None if on_text is None else lambda piece: in_loop(hear, piece),
                    on_done=lambda sample: in_loop(settle, sample),
                )
            except (ModelError, PictureError) as error:
                in_loop(settle, BackendError(str(error)))
            except Exception as error:  # a conversation of another form fails in types of the template's own
                in_loop(settle, BackendError(f"the conversation cannot be read: {error}"))
            if gone and row is not None:  # cancelled in between
                row.cancel()

        self._open.add(future)
        self._post(submit)
        try:
            sample = await future
        except asyncio.CancelledError:
            gone = True
            if row is not None:
                row.cancel()
            raise
        finally:
            self._open.discard(future)
        reasoning, text = split_reasoning(sample.text)
        return Completion(
            text, reasoning, sample.prompt_tokens, len(sample.tokens), sample.finish, sample.logprobs,
            time.monotonic() - started,
        )  # fmt: skip

    def count_tokens(self, text: str) -> int:
        """Exactly, by the model's own tokenizer."""
        return len(self._engine.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def close(self) -> None:
        """Ends the thread; calls that are not done fail."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
        for future in list(self._open):
            if not future.done():
                future.set_exception(BackendError(f"the model {self.name!r} was closed", fatal=True))

    def _post(self, job: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            raise BackendError(f"the model {self.name!r} is closed; load it again.", fatal=True)
        self._inbox.put(job)

    def _drive(self) -> None:
        """The engine's thread: takes what has come in, then gives every row a token; sleeps while there is nothing."""
        busy = False
        while True:
            try:
                job = self._inbox.get(block=not busy)
            except queue.Empty:
                job = self._step_or_fail
            if job is None:
                return
            result = job()
            busy = result if job == self._step_or_fail else True

    def _step_or_fail(self) -> bool:
        try:
            return self._engine.step()
        except Exception as error:  # out of memory, say: nothing in the batch can be trusted to go on
            self._engine.forget()
            for future in list(self._open):
                failure = BackendError(f"the model {self.name!r} failed: {error}")
                with contextlib.suppress(RuntimeError):
                    future.get_loop().call_soon_threadsafe(_fail, future, failure)
            return False


def _fail(future: asyncio.Future, error: BackendError) -> None:
    if not future.done():
        future.set_exception(error)
