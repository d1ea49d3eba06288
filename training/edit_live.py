"""The editor's pairs for steps that are made while pairs are drawn, see `training.live`."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from edit.conditioning import ask
from edit.latents import encode, vae_scale
from training import live
from training.edit_pairs import Pair, Pairs, PrimerPairs, Reader, changed_latents, words_of
from training.edit_stages import EditStage, PrimerStage
from training.vae import scaled, to_bytes
from training.world.sample import stream

READ_AT_ONCE = 64  # pairs of a chunk, by the model that sees


class DrawnPairs(Dataset):
    """Chunk i of the pairs: `before` and `after` as pixels, `changed` latents, `places`; with a reader also what it
    will read, `asked`: the processor's tensors of some rows after some."""

    def __init__(self, pairs: Pairs | PrimerPairs, reader: Reader | None, latent: int):
        """`latent`: pixels a side of one."""
        self.pairs, self.latent = pairs, latent
        self.processor, self.conditioning = (reader.processor, reader.conditioning) if reader else (None, None)

    def __getitem__(self, i: int) -> live.Rows:
        drawn = [self.pairs[i * live.CHUNK + k] for k in range(live.CHUNK)]
        size = (self.pairs.stage.size,) * 2
        grid = (size[1] // self.latent, size[0] // self.latent)
        rows = {name: to_bytes([getattr(pair, name) for pair in drawn], size) for name in ("before", "after")}
        rows["changed"] = torch.stack([changed_latents(pair, grid) for pair in drawn])
        rows["places"] = torch.stack([torch.from_numpy(pair.places) for pair in drawn]).half()
        if self.processor:
            words = [self._said(pair, i * live.CHUNK + k) for k, pair in enumerate(drawn)]
            rows["unsaid"] = torch.tensor([not said for said in words])
            # Alike in length, so that little is padded.
            order = sorted(range(live.CHUNK), key=lambda k: len(words[k]))
            rows = {name: values[order] for name, values in rows.items()}
            rows["asked"] = [
                self._asked([(drawn[k], words[k]) for k in order[first : first + READ_AT_ONCE]])
                for first in range(0, live.CHUNK, READ_AT_ONCE)
            ]
        return rows

    def _asked(self, pairs: list[tuple[Pair, str]]) -> live.Rows:
        asked = ask(self.processor, [pair.before for pair, _ in pairs], [said for _, said in pairs], self.conditioning)
        return {name: values.half() if values.is_floating_point() else values
                for name, values in asked.items() if isinstance(values, torch.Tensor)}  # fmt: skip

    def _said(self, pair: Pair, i: int) -> str:
        stage, rng = self.pairs.stage, stream("said", self.pairs.seed, i)
        if rng.random() < stage.dropout:
            return ""
        return words_of(pair, self.conditioning)["planned" if rng.random() < stage.planned else "embedding"]


class EncodedPairs:
    """A chunk of pairs as latents and, with a reader, embeddings: `hidden` (rows, `max_tokens`, width), zeros after the
    first `length` of each.

    Args:
        vae: makes the latents; None where the foresight is learnt alone, which has no use for them.
    """

    def __init__(self, vae, reader: Reader | None):
        self.vae, self.reader = vae, reader

    def __call__(self, chunk: live.Rows) -> live.Rows:
        rows = {name: chunk[name] for name in ("changed", "places")}
        if self.vae is not None:
            for name, own in (("reference", "before"), ("target", "after")):
                rows[name] = encode(self.vae, scaled(chunk[own].to(self.vae.device)))
        if not self.reader:
            return rows
        # An empty instruction has no truth to foresee.
        rows["places"] = rows["places"].masked_fill(chunk["unsaid"][:, None, None], torch.nan)
        read = [own for asked in chunk["asked"] for own in self.reader.read(asked)]
        room = self.reader.conditioning.max_tokens
        hidden = pad_sequence(read, batch_first=True)
        hidden = functional.pad(hidden, (0, 0, 0, room - hidden.shape[1]))
        return rows | {"hidden": hidden, "length": torch.tensor([len(own) for own in read])}


def pair_batches(stage: PrimerStage | EditStage, told: bool) -> Callable[[live.Rows, int, torch.Generator], list[dict]]:
    """What `EditSteps` makes of samples, of rows; `told` where they have embeddings."""

    def batches(rows: live.Rows, step: int, generator: torch.Generator) -> list[dict]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        rows = dict(rows)
        if "target" in rows:
            rows["noise"] = normal(*rows["target"].shape)
        rows["weight"] = 1 + stage.changed_weight * rows.pop("changed")
        rows["normal"] = normal(len(rows["weight"]))
        parts = min(stage.gradient_accumulation_steps, len(rows["weight"]))
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
            made.append(batch | {"foresight_alone": step < stage.foresight_steps})
        return made

    return batches


def live_pairs(
    stage: PrimerStage | EditStage, pairs: Pairs | PrimerPairs, reader: Reader | None, vae, first_step: int,
    workers: int, rank: int, world_size: int,
) -> Iterator[list[dict]]:  # fmt: skip
    """Steps of pairs as latents and, with a reader, embeddings."""
    vae.to(memory_format=torch.channels_last)
    alone = isinstance(stage, EditStage) and stage.foresight_steps == stage.steps
    encoded = EncodedPairs(None if alone else vae, reader)
    how = {"seed": pairs.seed, "first": first_step, "workers": workers, "rank": rank, "world_size": world_size}
    drawn = DrawnPairs(pairs, reader, vae_scale(vae))
    return live.live_steps(stage, drawn, encoded, pair_batches(stage, bool(reader)), vae.device, **how)
