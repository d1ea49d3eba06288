"""Where edits to learn from come from, and their latents and embeddings, made once and kept on disk.

The model that sees and the autoencoder are frozen while the painter learns, so what they say of a pair is said once:
`EditCache` writes it, and every later step, epoch and resumed run reads it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from edit.conditioning import Conditioning, embed, read
from edit.latents import encode, target_size
from training.edit_folder import load_edits
from training.edit_places import NUMBERS, PLACES, describe
from training.edit_stages import EditStage, PrimerStage
from training.vae import to_pixels
from training.world.edits import draw_edit
from training.world.sample import stream

SHARD = 256  # pairs a file
PAIRS_AT_ONCE = 32
WITHOUT = 4  # times the dropout is the share of pairs that are read without an instruction too, up to all
DENSE, DENSE_PLAINLY = (2, 8), (2, 5)  # steps of a dense pair told in short, and in sentences


@dataclass(frozen=True)
class Pair:
    """One edit to learn from.

    Attributes:
        changed: (height, width) of the pictures, True where the edit is; None where that is not known.
        plan: what becomes of what, in the world's short form; empty where that is not known, or all that is told.
        places: see `training.edit_places.describe`; None where that is not known.
        without: whether it is to be read without an instruction too, for guidance.
    """

    before: Image.Image
    after: Image.Image
    instruction: str
    changed: np.ndarray | None
    plan: str = ""
    places: np.ndarray | None = None
    without: bool = True

    def planned(self, conditioning: Conditioning) -> str:
        """What the painter is told where the edit was planned."""
        return conditioning.with_plan(self.instruction, self.plan) if self.plan else self.instruction


class Pairs(Dataset):
    """The pairs of a stage: the world's first `stage.pairs`, or a folder's or hub id's. Item i is always the same."""

    def __init__(self, stage: EditStage, seed: int):
        self.stage, self.seed = stage, seed
        self.edits = load_edits(stage.edits) if stage.edits else None

    @property
    def settings(self) -> dict:
        """What they depend on, apart from their number."""
        names = ("edits", "families", "easy", "size", "dense", "dropout")
        return {"seed": self.seed} | {name: getattr(self.stage, name) for name in names}

    def __len__(self) -> int:
        return self.stage.pairs if self.edits is None else len(self.edits)

    def __getitem__(self, i: int) -> Pair:
        without = stream("without", self.seed, i).random() < without_share(self.stage)
        if self.edits is not None:
            pair = self.edits[i]
            return Pair(pair.reference, pair.target, pair.instruction, None, without=without)
        rng = stream("edit", self.seed, i)
        split = "easy" if rng.random() < self.stage.easy else "train"
        if self.stage.dense and rng.random() < self.stage.dense:
            plainly = rng.random() < 0.5
            steps = rng.randint(*(DENSE_PLAINLY if plainly else DENSE))
            edit = draw_edit(rng.getrandbits(48), split, "multi", size=self.stage.size, steps=steps)
        else:
            plainly = True
            family = rng.choice(self.stage.families) if self.stage.families else None
            edit = draw_edit(rng.getrandbits(48), split, family, size=self.stage.size)
        plan = "; ".join(edit.steps)
        instruction, plan = (edit.instruction, plan) if plainly else (plan, "")
        return Pair(edit.before, edit.after, instruction, edit.changed, plan, describe(*edit.pages), without)


def without_share(stage: EditStage) -> float:
    """Of the pairs, how many are read without an instruction too: few samples learn from that, and it is read as long
    as an instruction."""
    return min(1.0, WITHOUT * stage.dropout)


class PrimerPairs(Dataset):
    """The pairs of the primer: full pages on which most things change, and lines of text; told by no words."""

    def __init__(self, stage: PrimerStage, seed: int):
        self.stage, self.seed = stage, seed

    @property
    def settings(self) -> dict:
        names = ("easy", "size", "things", "changes", "text")
        return {"seed": self.seed} | {name: getattr(self.stage, name) for name in names}

    def __len__(self) -> int:
        return self.stage.pairs

    def __getitem__(self, i: int) -> Pair:
        rng = stream("primer", self.seed, i)
        split = "easy" if rng.random() < self.stage.easy else "train"
        things, changes = rng.randint(*self.stage.things), rng.randint(*self.stage.changes)
        if self.stage.text and rng.random() < self.stage.text:
            edit = draw_edit(rng.getrandbits(48), split, "text", size=self.stage.size)
        else:
            edit = draw_edit(rng.getrandbits(48), split, "multi", size=self.stage.size, steps=changes, things=things)
        return Pair(edit.before, edit.after, "", edit.changed, places=describe(*edit.pages))


class EditCache(Dataset):
    """What the frozen models say of every pair, on disk.

    Item i is `{reference, target: (channels, height, width) normalised latents, changed: (height, width) 1 where
    the edit is, places: (places, numbers), see `training.edit_places`}` and the embeddings by the names in `told`:
    `embedding: (tokens, width)`, `planned`, with the plan behind it, and with some pairs `unconditional`, without an
    instruction; as float32.
    """

    def __init__(self, folder: Path, count: int, told: tuple[str, ...]):
        self.folder, self.count, self.told = folder, count, told

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        shard, own = self._open[i // SHARD], i % SHARD
        names = ["reference", "target", "changed", "places", *self.told]
        if f"{own}.unconditional" in self._names[i // SHARD]:
            names.append("unconditional")
        return {name: shard.get_tensor(f"{own}.{name}").float() for name in names}

    @cached_property
    def _open(self) -> list:
        return [safe_open(self.folder / _shard_name(s), "pt") for s in range(-(-self.count // SHARD))]

    @cached_property
    def _names(self) -> list[set[str]]:
        return [set(shard.keys()) for shard in self._open]

    def __getstate__(self) -> dict:
        """Without the open files: a worker opens its own."""
        return {"folder": self.folder, "count": self.count, "told": self.told}


def words_of(pair: Pair, conditioning: Conditioning) -> dict[str, str]:
    """All that may be said of a pair."""
    return {"embedding": pair.instruction, "planned": pair.planned(conditioning), "unconditional": ""}


@dataclass(frozen=True)
class Reader:
    """The frozen model that sees, and how it is asked.

    Attributes:
        planned: whether the pairs are read with their plans too.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    conditioning: Conditioning
    planned: bool = False

    @property
    def told(self) -> tuple[str, ...]:
        return ("embedding", *["planned"] * self.planned)

    def read(self, asked: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The embeddings of what `edit.conditioning.ask` made, on the model's device."""
        return read(self.model, self.processor, BatchFeature(asked), self.conditioning)

    def __call__(self, batch: Sequence[Pair]) -> list[dict[str, torch.Tensor]]:
        """The embeddings of some pairs, in half precision on the CPU."""
        told = [words_of(pair, self.conditioning) for pair in batch]
        for pair, texts in zip(batch, told, strict=True):
            if not self.planned:
                del texts["planned"]
            if not pair.without:
                del texts["unconditional"]
        # A picture that is told the same twice is read once, and texts of a length together: padding is read too.
        asked = sorted(
            {(i, text) for i, texts in enumerate(told) for text in texts.values()}, key=lambda ask: (len(ask[1]), ask)
        )
        made = {}
        for part in (asked[start : start + PAIRS_AT_ONCE] for start in range(0, len(asked), PAIRS_AT_ONCE)):
            pictures, words = [batch[i].before for i, _ in part], [text for _, text in part]
            made |= zip(part, embed(self.model, self.processor, pictures, words, self.conditioning), strict=True)
        return [
            {name: made[i, text].half().cpu().clone() for name, text in texts.items()} for i, texts in enumerate(told)
        ]


def build_cache(
    folder: Path, pairs: Pairs | PrimerPairs, reader: Reader | None, vae, multiple: int, workers: int = 1
) -> EditCache:
    """Encodes the pairs into `folder`, shard by shard; what is there already is kept. Processes share the work.

    Args:
        reader: makes the embeddings; None where none are wanted.
        multiple: pixels that the sides of an edited picture are a multiple of.

    A folder of the same pairs, fewer or more of them, is one to go on with.

    Raises:
        ValueError: the folder was made with other models, pairs or settings.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder / "cache.json", pairs, reader, vae, multiple)
    state.wait_for_everyone()
    shards = range(-(-len(pairs) // SHARD))
    vae.to(memory_format=torch.channels_last)  # faster on a CPU
    missing = [s for s in shards if not (folder / _shard_name(s)).exists()][state.process_index :: state.num_processes]
    console = Console(stderr=True, quiet=not state.is_main_process)
    for shard in track(missing, "encoding pairs", console=console):
        own = range(shard * SHARD, min(len(pairs), (shard + 1) * SHARD))
        tensors = {}
        # Fewer workers than pairs at once would wait for pictures; they draw the next ones while these are encoded.
        loader = DataLoader(pairs, batch_size=PAIRS_AT_ONCE, sampler=own, num_workers=workers, collate_fn=list)
        for start, batch in zip(range(0, len(own), PAIRS_AT_ONCE), loader, strict=True):
            for offset, item in enumerate(_encoded(batch, pairs.stage.size, multiple, reader, vae)):
                tensors |= {f"{start + offset}.{name}": value for name, value in item.items()}
        partial = folder / f"{_shard_name(shard)}.partial"
        save_file(tensors, partial)
        os.replace(partial, folder / _shard_name(shard))
    state.wait_for_everyone()
    return EditCache(folder, len(pairs), reader.told if reader else ())


def _shard_name(shard: int) -> str:
    return f"pairs-{shard:05d}.safetensors"


@torch.inference_mode()
def _encoded(batch: list[Pair], side: int, multiple: int, reader: Reader | None, vae):
    """The cache's entries of some pairs, in half precision on the CPU."""
    read = reader(batch) if reader else [{}] * len(batch)
    for pair, embeddings in zip(batch, read, strict=True):
        size = target_size(*pair.before.size, side, multiple)
        reference, target = encode(vae, to_pixels([pair.before, pair.after], size)).half().cpu()
        changed = changed_latents(pair, target.shape[1:])
        places = torch.full((PLACES, NUMBERS), torch.nan) if pair.places is None else torch.from_numpy(pair.places)
        yield {"reference": reference.contiguous(), "target": target.contiguous(), "changed": changed,
               "places": places.half(), **embeddings}  # fmt: skip


def changed_latents(pair: Pair, grid: tuple[int, int]) -> torch.Tensor:
    """(height, width) of `grid`, 1 where the edit is, in half precision; 0 everywhere where that is not known."""
    if pair.changed is None:
        return torch.zeros(grid, dtype=torch.float16)
    mask = torch.from_numpy(pair.changed).float()[None, None]
    return functional.adaptive_max_pool2d(mask, grid)[0, 0].half()


def _check_same(path: Path, pairs: Pairs | PrimerPairs, reader: Reader | None, vae, multiple: int) -> None:
    """A cache belongs to the models and pairs it was made with; embeddings of another model would teach nonsense."""
    made_with = pairs.settings | {"pairs": len(pairs), "vae": _digest(vae), "multiple": multiple, "numbers": NUMBERS}
    if reader:
        made_with |= {"conditioning": reader.conditioning.to_dict(), "vision_language": _digest(reader.model),
                      "planned": reader.planned}  # fmt: skip
    made_with = json.loads(json.dumps(made_with))  # as it will be read
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else made_with | {"pairs": 0}
    if different := [key for key in made_with if key != "pairs" and before.get(key) != made_with[key]]:
        raise ValueError(
            f"{path.parent} was made with another {' and '.join(different)}; remove it to encode the pairs again, or "
            f"train in another folder with --out."
        )
    if before["pairs"] < len(pairs) and PartialState().is_main_process:
        if before["pairs"] % SHARD:  # the last file is not a whole one
            (path.parent / _shard_name(before["pairs"] // SHARD)).unlink(missing_ok=True)
        path.write_text(json.dumps(made_with), encoding="utf-8")


def _digest(model: torch.nn.Module) -> str:
    """Tells models apart by the sums of their weights, without reading them all into one buffer."""
    sums = [f"{name} {tuple(p.shape)} {float(p.detach().double().sum()):.9e}" for name, p in model.named_parameters()]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]
