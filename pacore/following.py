"""A run to look at while it goes on: all that happened so far, again and again, until it ends or is stopped."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

from pacore.backends import Backend
from pacore.coordination import Event, Plan, solve

STOP_SECONDS = 0.1  # how often it is asked whether the run is to stop


async def follow(
    backend: Backend, conversation: list[dict], plan: Plan, stop: threading.Event, pause: Callable[[], float]
) -> AsyncIterator[tuple[list[Event], bool]]:
    """`solve`, as (its events so far, whether it is over): at once, then every `pause()` seconds, and at its end.

    Args:
        stop: set from any thread, it cancels every trajectory, whether or not anybody still takes what comes; there is
            no `outcome` then.

    Raises what `solve` raises, after the events that came before it.
    """
    events: list[Event] = []
    work = asyncio.create_task(solve(backend, conversation, plan, on_event=events.append))
    watch = asyncio.create_task(_cancel_at(stop, work))
    try:
        while not work.done():
            yield list(events), False
            await asyncio.wait({work}, timeout=pause())
        yield list(events), True
        if not work.cancelled():
            work.result()
    finally:
        work.cancel()
        watch.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def _cancel_at(stop: threading.Event, work: asyncio.Task) -> None:
    while not stop.is_set():
        await asyncio.sleep(STOP_SECONDS)
    work.cancel()
