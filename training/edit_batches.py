"""What a step of the editor's training is made of, from the pairs on disk; and the error of the painter on it."""

import copy
import random
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.utils.data import Dataset

from edit.conditioning import Conditioning
from edit.flow import noised, shifted, velocity
from edit.latents import PACKING, image_ids, pack, unpack
from training.edit_pairs import EditCache, Pairs, without_share
from training.edit_stages import EditStage, PrimerStage
from training.world.sample import stream


class EditSteps(Dataset):
    """Item t is this rank's share of step t as micro-batches, one latent size each: a pure function of (seed, t).

    Args:
        pairs, conditioning: where the model that sees is to read pictures and instructions anew; else the cache has
            what it said, or nothing is told in words.
    """

    def __init__(
        self, stage: EditStage | PrimerStage, cache: EditCache, seed: int, rank: int = 0, world_size: int = 1,
        pairs: Pairs | None = None, conditioning: Conditioning | None = None,
    ):  # fmt: skip
        if stage.batch_size % world_size:
            raise ValueError(f"batch_size {stage.batch_size} does not divide by {world_size} processes.")
        self.stage, self.cache, self.seed, self.rank, self.world_size = stage, cache, seed, rank, world_size
        self.pairs, self.conditioning = pairs, conditioning
        self._order = (-1, [])

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[dict]:
        by_size: dict[tuple, list[dict]] = {}
        for i in range(self.rank, self.stage.batch_size, self.world_size):
            sample = self._sample(step, i)
            by_size.setdefault(tuple(sample["target"].shape), []).append(sample)
        parts = self.stage.gradient_accumulation_steps
        batches = []
        for group in by_size.values():
            # Alike in length, so that little is padded: a long instruction would make all others as long.
            group.sort(key=lambda sample: len(sample.get("embedding", ())))
            share = -(-len(group) // parts)
            batches += [self._batch(group[begin : begin + share]) for begin in range(0, len(group), share)]
        if not self.cache.told:
            return batches
        alone = step < self.stage.foresight_steps
        return [batch | {"foresight_alone": alone} for batch in batches]

    def _sample(self, step: int, i: int) -> dict:
        """A pair, its noise and its level; an empty instruction now and then, or one that is followed by its plan."""
        index = self._pair(step * self.stage.batch_size + i)
        rng = stream("flow", self.seed, step, i)
        item = self.cache[index]
        told = self._told(item, rng)
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        sample = item | {
            "noise": torch.randn(item["target"].shape, generator=generator),
            "normal": torch.randn((), generator=generator),
        }
        if told:
            sample["embedding"] = item[told]
        if self.pairs is not None:
            pair = self.pairs[index]
            words = {"unconditional": "", "embedding": pair.instruction, "planned": pair.planned(self.conditioning)}
            sample |= {"picture": pair.before, "instruction": words[told]}
        if told == "unconditional":
            sample["places"] = torch.full_like(item["places"], torch.nan)
        return sample

    def _told(self, item: dict, rng: random.Random) -> str | None:
        """What a sample is told, of what the cache has."""
        if not self.cache.told:
            return None
        if "unconditional" in item and rng.random() < self.stage.dropout / without_share(self.stage):
            return "unconditional"
        return "planned" if rng.random() < self.stage.planned else "embedding"

    def _pair(self, position: int) -> int:
        """Every pair once an epoch, in an order of the epoch's own."""
        epoch, place = divmod(position, len(self.cache))
        if self._order[0] != epoch:
            order = list(range(len(self.cache)))
            stream("epoch", self.seed, epoch).shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def _batch(self, samples: list[dict]) -> dict:
        names = ("reference", "target", "places", "noise", "normal")
        batch = {name: torch.stack([s[name] for s in samples]) for name in names}
        batch["weight"] = 1 + self.stage.changed_weight * torch.stack([s["changed"] for s in samples])
        if not self.cache.told:
            return batch
        if self.pairs is None:
            return batch | {"embeddings": [s["embedding"] for s in samples]}
        return batch | {name + "s": [s[name] for s in samples] for name in ("picture", "instruction")}


@dataclass(frozen=True)
class Painting:
    """How the transformer is called, as the options of `EditPipeline` of these names say."""

    packing: int = PACKING
    reference_index: int = 0
    reference_skip: bool = False
    reference_channels: bool = False

    @classmethod
    def of(cls, options: dict) -> "Painting":
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if name in options})

    def error(
        self, transformer: FluxTransformer2DModel, batch: dict, level: torch.Tensor, text: torch.Tensor,
        pooled: torch.Tensor, text_ids: torch.Tensor, bias: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The squared error of the velocity, weighted by latent, summed over samples.

        Args:
            batch: see `EditSteps`.
            level: (batch,), from `levels`.
            text, pooled: what the transformer is told, and with `text_ids` and `bias` where: see `edit.flow.velocity`.
        """
        height, width = batch["target"].shape[-2:]
        target, noise, reference = (pack(batch[name], self.packing) for name in ("target", "noise", "reference"))
        ids = image_ids(height, width, self.reference_index, target.device, self.packing)
        predicted = velocity(
            transformer, noised(target, noise, level), reference, level, text, pooled, ids, text_ids, bias,
            self.reference_skip, self.reference_channels,
        )  # fmt: skip
        predicted = unpack(predicted.float(), height, width, self.packing)
        error = (predicted - (batch["noise"] - batch["target"])).square().mean(1)
        return ((error * batch["weight"]).flatten(1).sum(1) / batch["weight"].flatten(1).sum(1)).sum()


def levels(batch: dict, mu: float) -> torch.Tensor:
    """(batch,), logit-normal (arXiv 2403.03206, section 3.1), with the resolution's shift mu."""
    return shifted(batch["normal"].sigmoid(), mu)


class Average(nn.ModuleDict):
    """Averaged weights of some modules, which move towards the latest ones, faster at first, when there is little to
    remember."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__({name: copy.deepcopy(part).requires_grad_(False) for name, part in parts.items()})

    @torch.no_grad()
    def follow(self, latest: nn.Module, decay: float, step: int) -> None:
        """`latest` has the modules by their names."""
        rate = 1 - min(decay, (1 + step) / (10 + step))
        for name, average in self.items():
            torch._foreach_lerp_(list(average.parameters()), list(getattr(latest, name).parameters()), rate)
