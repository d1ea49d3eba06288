"""Steps made of what has just been drawn: the newest samples of a stage in memory, with more coming in all the time.

A cache on disk holds as many pairs as somebody waited for, and the painter has them by heart before it can paint: at a
noise level of 0.99 mini's erred 0.122 on its 20,480 pages and 0.200 on new ones. Here processes draw without end, the
device encodes what they draw, and a step is a random choice of all that is held. How much that is when a step is made
depends on how fast they draw, so such a run is not repeated to the bit as others are; what they draw is.
"""

import queue
import threading
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from edit.conditioning import ask
from edit.latents import encode, vae_scale
from training.edit_pairs import Pair, Pairs, PrimerPairs, Reader, changed_latents, words_of
from training.recipe import EditStage, PrimerStage, VaeStage
from training.vae import Pictures, to_pixels
from training.world.sample import stream

CHUNK = 128  # samples that a process draws, and the device encodes, at once
READ_AT_ONCE = 64  # of them, by the model that sees
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
    batches: Callable[[Rows], list[dict]], device: torch.device, *, seed: int, first: int, workers: int, rank: int,
    world_size: int,
) -> Iterator[list[dict]]:  # fmt: skip
    """Steps as micro-batches, without end.

    Args:
        drawn: item i is the i-th chunk as it comes from a drawing process: tensors of a row each, by name.
        encoded: makes rows to keep of a chunk, on the device.
        batches: makes micro-batches of rows.
        first: chunks that are not drawn, for an interrupted run has seen them.
    """
    if stage.batch_size % world_size:
        raise ValueError(f"batch_size {stage.batch_size} does not divide by {world_size} processes.")
    count, newest = stage.batch_size // world_size, Newest(stage.live, device)
    generator = torch.Generator(device).manual_seed(seed * 1_000_003 + first * world_size + rank)
    own = range(first * world_size + rank, 2**31, world_size)
    loader = DataLoader(drawn, batch_size=None, sampler=own, num_workers=workers)
    ahead = _Ahead(iter(loader))
    try:
        while True:
            # One chunk a step at most once there are enough: neither drawing nor training waits for long.
            while newest.held < count or ahead.has_some:
                with torch.inference_mode():
                    newest.put(encoded(ahead.take()))
                if newest.held >= count:
                    break
            yield batches(newest.choose(count, generator))
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


class DrawnPictures(Dataset):
    """Chunk i of the autoencoder's pictures, `{pixels: (pictures, 3, size, size), whole numbers}`."""

    def __init__(self, stage: VaeStage, seed: int):
        self.pictures = Pictures(stage, seed)

    def __getitem__(self, i: int) -> Rows:
        drawn = [self.pictures.draw(i, k) for k in range(CHUNK)]
        pixels = to_pixels(drawn, (self.pictures.stage.size,) * 2)
        return {"pixels": ((pixels + 1) * 127.5).round().byte()}


class DrawnPairs(Dataset):
    """Chunk i of the pairs: `before` and `after` as pixels, `changed` latents, `places`; with a reader also what it
    will read, `asked`: the processor's tensors of some rows after some."""

    def __init__(self, pairs: Pairs | PrimerPairs, reader: Reader | None, latent: int):
        """`latent`: pixels a side of one."""
        self.pairs, self.latent = pairs, latent
        self.processor, self.conditioning = (reader.processor, reader.conditioning) if reader else (None, None)

    def __getitem__(self, i: int) -> Rows:
        drawn = [self.pairs[i * CHUNK + k] for k in range(CHUNK)]
        size = (self.pairs.stage.size,) * 2
        grid = (size[1] // self.latent, size[0] // self.latent)
        rows = {name: ((to_pixels([getattr(pair, name) for pair in drawn], size) + 1) * 127.5).round().byte()
                for name in ("before", "after")}  # fmt: skip
        rows["changed"] = torch.stack([changed_latents(pair, grid) for pair in drawn])
        rows["places"] = torch.stack([torch.from_numpy(pair.places) for pair in drawn]).half()
        if self.processor:
            words = [self._said(pair, i * CHUNK + k) for k, pair in enumerate(drawn)]
            rows["unsaid"] = torch.tensor([not said for said in words])
            # Alike in length, so that little is padded.
            order = sorted(range(CHUNK), key=lambda k: len(words[k]))
            rows = {name: values[order] for name, values in rows.items()}
            rows["asked"] = [
                self._asked([(drawn[k], words[k]) for k in order[first : first + READ_AT_ONCE]])
                for first in range(0, CHUNK, READ_AT_ONCE)
            ]
        return rows

    def _asked(self, pairs: list[tuple[Pair, str]]) -> Rows:
        asked = ask(self.processor, [pair.before for pair, _ in pairs], [said for _, said in pairs], self.conditioning)
        return {name: values.half() if values.is_floating_point() else values
                for name, values in asked.items() if isinstance(values, torch.Tensor)}  # fmt: skip

    def _said(self, pair: Pair, i: int) -> str:
        stage, rng = self.pairs.stage, stream("said", self.pairs.seed, i)
        if rng.random() < stage.dropout:
            return ""
        return words_of(pair, self.conditioning)["planned" if rng.random() < stage.planned else "embedding"]


def pixels_of(rows: torch.Tensor) -> torch.Tensor:
    """Whole numbers as `to_pixels` has them."""
    return rows.float() / 127.5 - 1


class EncodedPairs:
    """A chunk of pairs as latents and, with a reader, embeddings: `hidden` (rows, `max_tokens`, width), zeros after the
    first `length` of each.

    Args:
        vae: makes the latents; None where the foresight is learnt alone, which has no use for them.
    """

    def __init__(self, vae, reader: Reader | None):
        self.vae, self.reader = vae, reader

    def __call__(self, chunk: Rows) -> Rows:
        rows = {name: chunk[name] for name in ("changed", "places")}
        if self.vae is not None:
            for name, own in (("reference", "before"), ("target", "after")):
                rows[name] = encode(self.vae, pixels_of(chunk[own].to(self.vae.device)))
        if not self.reader:
            return rows
        # An empty instruction has no truth to foresee.
        rows["places"] = rows["places"].masked_fill(chunk["unsaid"][:, None, None], torch.nan)
        read = [own for asked in chunk["asked"] for own in self.reader.read(asked)]
        room = self.reader.conditioning.max_tokens
        hidden = pad_sequence(read, batch_first=True)
        hidden = functional.pad(hidden, (0, 0, 0, room - hidden.shape[1]))
        return rows | {"hidden": hidden, "length": torch.tensor([len(own) for own in read])}


def pair_batches(stage: PrimerStage | EditStage, told: bool) -> Callable[[Rows], list[dict]]:
    """What `EditSteps` makes of samples, of rows; `told` where they have embeddings."""

    def batches(rows: Rows) -> list[dict]:
        rows = dict(rows)
        if "target" in rows:
            rows["noise"] = torch.randn_like(rows["target"])
        rows["weight"] = 1 + stage.changed_weight * rows.pop("changed")
        rows["normal"] = torch.randn(len(rows["weight"]), device=rows["weight"].device)
        parts = stage.gradient_accumulation_steps
        if not told:
            return [{name: value[part::parts] for name, value in rows.items()} for part in range(parts)]
        # Alike in length, so that little is padded.
        order = rows["length"].argsort()
        made = []
        for own in order.chunk(parts):
            batch = {name: value[own] for name, value in rows.items()}
            length = batch.pop("length")
            longest = int(length.max())
            batch["hidden"] = batch["hidden"][:, :longest]
            batch["mask"] = (torch.arange(longest, device=length.device) < length[:, None]).long()
            made.append(batch | {"foresight_alone": stage.foresight_steps == stage.steps})
        return made

    return batches


def live_pairs(
    stage: PrimerStage | EditStage, pairs: Pairs | PrimerPairs, reader: Reader | None, vae, first_step: int,
    workers: int, rank: int, world_size: int,
) -> Iterator[list[dict]]:  # fmt: skip
    """Steps of pairs as latents and, with a reader, embeddings; from `first_step` on, from chunks not drawn before."""
    vae.to(memory_format=torch.channels_last)
    alone = isinstance(stage, EditStage) and stage.foresight_steps == stage.steps
    encoded = EncodedPairs(None if alone else vae, reader)
    how = {"seed": pairs.seed, "first": first_step, "workers": workers, "rank": rank, "world_size": world_size}
    drawn = DrawnPairs(pairs, reader, vae_scale(vae))
    return live_steps(stage, drawn, encoded, pair_batches(stage, bool(reader)), vae.device, **how)


def live_pictures(
    stage: VaeStage, seed: int, device: torch.device, first_step: int, workers: int, rank: int, world_size: int
) -> Iterator[list[dict]]:
    """Steps of whole pictures, as `training.vae` has them."""

    def batches(rows: Rows) -> list[dict]:
        parts = stage.gradient_accumulation_steps
        return [{"pixels": pixels_of(rows["pixels"][part::parts])} for part in range(parts)]

    return live_steps(
        stage, DrawnPictures(stage, seed), lambda chunk: chunk, batches, device, seed=seed, first=first_step,
        workers=workers, rank=rank, world_size=world_size,
    )  # fmt: skip
