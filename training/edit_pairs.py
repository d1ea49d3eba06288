"""Where edits to learn from come from, and their latents and embeddings, made once and kept on disk.

The model that sees and the autoencoder are frozen while the painter learns, so what they say of a pair is said once:
`EditCache` writes it, and every later step, epoch and resumed run reads it.
"""

import hashlib
import json
import os
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

from edit.conditioning import Conditioning, embed
from edit.latents import encode, target_size
from training.edit_folder import load_edits
from training.recipe import EditStage
from training.vae import to_pixels
from training.world.edits import draw_edit
from training.world.sample import stream

SHARD = 256  # pairs a file
PAIRS_AT_ONCE = 32
DENSE = (4, 8)  # steps of a dense pair


@dataclass(frozen=True)
class Pair:
    """One edit to learn from.

    Attributes:
        changed: (height, width) of the pictures, True where the edit is; None where that is not known.
        plan: what becomes of what, in the world's short form; empty where that is not known, or all that is told.
    """

    before: Image.Image
    after: Image.Image
    instruction: str
    changed: np.ndarray | None
    plan: str = ""

    def planned(self, conditioning: Conditioning) -> str:
        """What the painter is told where the edit was planned."""
        return conditioning.with_plan(self.instruction, self.plan) if self.plan else self.instruction


class Pairs(Dataset):
    """The pairs of a stage: the world's first `stage.pairs`, or a folder's or hub id's. Item i is always the same."""

    def __init__(self, stage: EditStage, seed: int):
        self.stage, self.seed = stage, seed
        self.edits = load_edits(stage.edits) if stage.edits else None

    def __len__(self) -> int:
        return self.stage.pairs if self.edits is None else len(self.edits)

    def __getitem__(self, i: int) -> Pair:
        if self.edits is not None:
            pair = self.edits[i]
            return Pair(pair.reference, pair.target, pair.instruction, None)
        rng = stream("edit", self.seed, i)
        split = "easy" if rng.random() < self.stage.easy else "train"
        if self.stage.dense and rng.random() < self.stage.dense:
            edit = draw_edit(rng.getrandbits(48), split, "multi", size=self.stage.size, steps=rng.randint(*DENSE))
            return Pair(edit.before, edit.after, "; ".join(edit.steps), edit.changed)
        family = rng.choice(self.stage.families) if self.stage.families else None
        edit = draw_edit(rng.getrandbits(48), split, family, size=self.stage.size)
        return Pair(edit.before, edit.after, edit.instruction, edit.changed, "; ".join(edit.steps))


class EditCache(Dataset):
    """What the frozen models say of every pair, on disk.

    Item i is `{reference, target: (channels, height, width) normalised latents, changed: (height, width) 1 where
    the edit is, embedding: (tokens, width), unconditional: likewise, with an empty instruction}`, and `planned`, with
    the plan behind the instruction, where the stage wants it; as float32.
    """

    def __init__(self, folder: Path, count: int, planned: bool = False):
        self.folder, self.count, self.planned = folder, count, planned

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        shard, own = self._open[i // SHARD], i % SHARD
        names = ["reference", "target", "changed", "embedding", "unconditional"]
        if self.planned:
            names.append("planned")
        return {name: shard.get_tensor(f"{own}.{name}").float() for name in names}

    @cached_property
    def _open(self) -> list:
        return [safe_open(self.folder / _shard_name(s), "pt") for s in range(-(-self.count // SHARD))]

    def __getstate__(self) -> dict:
        """Without the open files: a worker opens its own."""
        return {"folder": self.folder, "count": self.count, "planned": self.planned}


def build_cache(
    folder: Path, pairs: Pairs, model, processor, vae, conditioning: Conditioning, multiple: int, workers: int = 1
) -> EditCache:
    """Encodes the pairs into `folder`, shard by shard; what is there already is kept. Processes share the work.

    Args:
        multiple: pixels that the sides of an edited picture are a multiple of.

    A folder of the same pairs, fewer or more of them, is one to go on with.

    Raises:
        ValueError: the folder was made with other models, pairs or settings.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder / "cache.json", pairs, model, vae, conditioning, multiple)
    state.wait_for_everyone()
    shards = range(-(-len(pairs) // SHARD))
    missing = [s for s in shards if not (folder / _shard_name(s)).exists()][state.process_index :: state.num_processes]
    console = Console(stderr=True, quiet=not state.is_main_process)
    for shard in track(missing, "encoding pairs", console=console):
        own = range(shard * SHARD, min(len(pairs), (shard + 1) * SHARD))
        tensors = {}
        # Fewer workers than pairs at once would wait for pictures; they draw the next ones while these are encoded.
        loader = DataLoader(pairs, batch_size=PAIRS_AT_ONCE, sampler=own, num_workers=workers, collate_fn=list)
        for start, batch in zip(range(0, len(own), PAIRS_AT_ONCE), loader, strict=True):
            for offset, item in enumerate(_encoded(batch, pairs.stage, multiple, model, processor, vae, conditioning)):
                tensors |= {f"{start + offset}.{name}": value for name, value in item.items()}
        partial = folder / f"{_shard_name(shard)}.partial"
        save_file(tensors, partial)
        os.replace(partial, folder / _shard_name(shard))
    state.wait_for_everyone()
    return EditCache(folder, len(pairs), bool(pairs.stage.planned))


def _shard_name(shard: int) -> str:
    return f"pairs-{shard:05d}.safetensors"


@torch.inference_mode()
def _encoded(batch: list[Pair], stage: EditStage, multiple: int, model, processor, vae, conditioning: Conditioning):
    """The cache's entries of some pairs, in half precision on the CPU."""
    before = [pair.before for pair in batch]
    told = {"embedding": [pair.instruction for pair in batch], "unconditional": [""] * len(batch)}
    if stage.planned:
        told["planned"] = [pair.planned(conditioning) for pair in batch]
    # A picture that is told the same twice is read once, and texts of a length together: padding is read too.
    texts = sorted(
        {text for words in told.values() for text in enumerate(words)}, key=lambda text: (len(text[1]), text)
    )
    made = {}
    for part in (texts[start : start + PAIRS_AT_ONCE] for start in range(0, len(texts), PAIRS_AT_ONCE)):
        words = [words for _, words in part]
        made |= zip(part, embed(model, processor, [before[i] for i, _ in part], words, conditioning), strict=True)
    for i, pair in enumerate(batch):
        size = target_size(*pair.before.size, stage.size, multiple)
        reference, target = encode(vae, to_pixels([pair.before, pair.after], size)).half().cpu()
        grid = target.shape[1:]
        changed = torch.zeros(grid, dtype=torch.float16)
        if pair.changed is not None:
            mask = torch.from_numpy(pair.changed).float()[None, None]
            changed = functional.adaptive_max_pool2d(mask, grid)[0, 0].half()
        embeddings = {name: made[i, words[i]].half().cpu().clone() for name, words in told.items()}
        yield {"reference": reference.contiguous(), "target": target.contiguous(), "changed": changed,
               **embeddings}  # fmt: skip


def _check_same(path: Path, pairs: Pairs, model, vae, conditioning: Conditioning, multiple: int) -> None:
    """A cache belongs to the models and pairs it was made with; embeddings of another model would teach nonsense."""
    stage = pairs.stage
    made_with = {
        "edits": stage.edits, "pairs": len(pairs), "families": stage.families, "easy": stage.easy, "size": stage.size,
        "seed": pairs.seed, "conditioning": conditioning.to_dict(), "vision_language": _digest(model),
        "vae": _digest(vae), "planned": bool(stage.planned), "dense": stage.dense,
        "multiple": multiple,
    }  # fmt: skip
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
