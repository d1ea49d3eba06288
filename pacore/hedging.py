"""A second call beside one that takes long; whichever ends first counts (Dean and Barroso, The Tail at Scale, 2013)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pacore.backends import BackendError

T = TypeVar("T")


async def first_of_two(
    first: Callable[[], Awaitable[T]],
    second: Callable[[], Awaitable[T]],
    patience: float,
    on_second: Callable[[], None],
) -> list[T]:
    """What the call that ends first gives; also what the other gives, if it ends at the very same moment.

    The second begins where the first has taken `patience` seconds, after `on_second`; the one that is not needed is
    cancelled. One that fails leaves it to the other.

    Raises:
        BackendError: the first failed before the second began, or both did; the first's.
    """
    tasks = [asyncio.ensure_future(first())]
    try:
        done, running = await asyncio.wait(tasks, timeout=patience)
        if not done:
            on_second()
            tasks.append(asyncio.ensure_future(second()))
            running.add(tasks[1])
        while running and not any(task.done() and task.exception() is None for task in tasks):
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception) and not isinstance(end, BackendError):
            raise end  # a defect
    had = [end for end in ends if not isinstance(end, BaseException)]
    if not had:
        raise ends[0]
    return had
