"""Steps made of what has just been drawn: the newest samples of a stage in memory, with more coming in all the time.

A cache on disk holds as many pairs as somebody waited for, and the painter has them by heart before it can paint: at a
noise level of 0.99 mini's erred 0.122 on its 20,480 pages and 0.200 on new ones. Here processes draw without end, the
device encodes what they draw, and a step is a random choice of all that is held. How much that is when a step is made
depends on how fast they draw, so such a run is not repeated to the bit as others are; what they draw is.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from training.edit_stages import EditStage, PrimerStage, VaeStage

CHUNK = 128  # samples that a process draws, and the device encodes, at once
WAITING = 4  # chunks that are drawn and not yet encoded, at most

Rows = dict[str, torch.Tensor]  # a sample each


class Newest:
    """The last `capacity` rows that were put in, on a device, in half precision (whole numbers as they are)."""

    def __init__(self, capacity: int, device: torch.device):
        self.capacity, self.device, self.held, self._next = capacity, device, 0, 0
        self._kept: Rows = {}

    def put(self, rows: Rows) -> None:
        rows = {name: values[-self.capacity :] for name, values in rows.items()}
        count = len(next(iter(rows.values())))
        where = torch.arange(self._next, self._next + count, device=self.device) % self.capacity
        for name, values in rows.items():
            values = values.to(self.device)
            values = values.half() if values.is_floating_point() else values
            if name not in self._kept:
                self._kept[name] = torch.empty((self.capacity, *values.shape[1:]), dtype=values.dtype,
                                               device=self.device)  # fmt: skip
            self._kept[name][where] = values
        self._next = (self._next + count) % self.capacity
        self.held = min(self.capacity, self.held + count)

    def choose(self, count: int, generator: torch.Generator) -> Rows:
        """Rows by chance, each as likely; what was half precision as float32."""
        which = torch.randint(self.held, (count,), generator=generator, device=self.device)
        chosen = {name: kept[which] for name, kept in self._kept.items()}
        return {name: rows.float() if rows.is_floating_point() else rows for name, rows in chosen.items()}


def live_steps(
    stage: VaeStage | PrimerStage | EditStage, drawn: Dataset, encoded: Callable[[Rows], Rows],
    batches: Callable[[Rows, int, torch.Generator], list[dict]], device: torch.device, *, seed: int, first: int,
    workers: int, rank: int, world_size: int,
) -> Iterator[list[dict]]:  # fmt: skip
    """Steps as micro-batches, without end.

    Args:
        drawn: item i is the i-th chunk of `CHUNK` rows as it comes from a drawing process.
        encoded: makes rows to keep of a chunk, on the device.
        batches: makes micro-batches of rows, the step and this process's own source of chance.
        first: the first step; what an unbroken run has drawn before it is not drawn again.

    Raises:
        ValueError: `batch_size` does not divide by `world_size`; and whatever drawing raises.
    """
    if stage.batch_size % world_size:
        raise ValueError(f"batch_size {stage.batch_size} does not divide by {world_size} processes.")
    count, newest = stage.batch_size // world_size, Newest(stage.live, device)
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + first * world_size + rank)
    seen = first and first + -(-count // CHUNK)  # chunks a process took at most: enough for a step, then one a step
    own = range(seen * world_size + rank, 2**31, world_size)
    loader = DataLoader(drawn, batch_size=None, sampler=own, num_workers=workers)
    ahead = _Ahead(iter(loader))
    try:
        for step in itertools.count(first):
            # One chunk a step at most once there are enough: neither drawing nor training waits for long.
            while newest.held < count or ahead.has_some:
                with torch.inference_mode():
                    newest.put(encoded(ahead.take()))
                if newest.held >= count:
                    break
            yield batches(newest.choose(count, generator), step, generator)
    finally:
        ahead.stop()


class _Ahead:
    """What an iterator gives, taken by a thread of its own until `WAITING` wait here."""

    def __init__(self, items: Iterator):
        self._queue: queue.Queue = queue.Queue(WAITING)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, args=(items,), daemon=True).start()

    @property
    def has_some(self) -> bool:
        return not self._queue.empty()

    def take(self):
        """The next one, which is waited for. Raises what the iterator did."""
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def stop(self) -> None:
        self._stopped.set()

    def _run(self, items: Iterator) -> None:
        try:
            for item in items:
                self._put(item)
                if self._stopped.is_set():
                    return
        except Exception as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
