"""Stage `edit_primer`: a fresh transformer learns to draw, told by numbers what becomes of each place.

Drawing and reading are learnt apart: `edit` takes these weights and teaches the connector to spell the same numbers
(`training.edit.Foresight`), alone or then both together. The world alone has pages on which nearly everything changes,
so a step holds several times the lessons in drawing that as many instructions would.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from torch import nn

from edit.configuration import PRESETS, build
from edit.flow import flow_shift, set_schedule, skip_reference_output, velocity
from edit.latents import decode, encode, image_ids, pack, text_ids, token_channels, unpack, vae_scale
from training.edit_batches import Average, EditSteps, Painting, levels
from training.edit_live import live_pairs
from training.edit_pairs import EditCache, PrimerPairs, build_cache
from training.edit_places import NUMBERS, describe, spelled
from training.edit_sheet import results_sheet
from training.edit_stages import PrimerStage
from training.edit_start import like
from training.loop import made_ahead, train
from training.recipe import Recipe
from training.schedule import RecipeError
from training.vae import to_pictures, to_pixels
from training.world.edits import EDIT_FAMILIES, Edit, draw_edit
from training.world.scenes import GRID

SHEET_STEPS = 4  # of sampling, for the sheet that is drawn while training


class Primer(nn.Module):
    """The transformer, its averaged weights, and its loss inside one forward pass."""

    def __init__(self, transformer: FluxTransformer2DModel, painting: Painting, average: bool):
        super().__init__()
        self.transformer, self.painting = transformer, painting
        if average:
            self.average = Average({"transformer": transformer})
        skip_reference_output(transformer)

    def forward(self, batch: dict, mu: float) -> torch.Tensor:
        told = told_by_places(self.transformer, batch["places"], self.painting.packing, batch["target"].shape[-2:])
        return self.painting.error(self.transformer, batch, levels(batch, mu), *told)


def told_by_places(
    transformer: FluxTransformer2DModel, places: torch.Tensor, packing: int, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text stream, pooled vector (nothing) and text positions for latents of this height and width."""
    text = spelled(places, transformer.config.joint_attention_dim)
    pooled = text.new_zeros(len(text), transformer.config.pooled_projection_dim)
    ids = text_ids(1 + GRID**2, *size, GRID, text.device, packing)[1:]  # those behind the opening mark
    return text, pooled, ids


@torch.inference_mode()
def paint_by_places(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, scheduler: FlowMatchEulerDiscreteScheduler,
    painting: Painting, edits: list[Edit], steps: int,
) -> list[Image.Image]:  # fmt: skip
    """The edits as the transformer draws them when it is told all there is to know; each from its own seed's noise."""
    before = encode(vae, to_pixels([edit.before for edit in edits], edits[0].before.size).to(vae.device))
    height, width = before.shape[-2:]
    reference = pack(before, painting.packing)
    places = torch.from_numpy(np.stack([describe(*edit.pages) for edit in edits])).to(reference)
    text, pooled, ids = told_by_places(transformer, places, painting.packing, (height, width))
    noise = [torch.randn(before.shape[1:], generator=torch.Generator().manual_seed(edit.seed)) for edit in edits]
    latents = pack(torch.stack(noise).to(before), painting.packing)
    where = image_ids(height, width, painting.reference_index, latents.device, painting.packing)
    for timestep in set_schedule(scheduler, steps, latents.shape[1], device=latents.device):
        level = (timestep / 1000).expand(len(latents)).to(latents)
        predicted = velocity(transformer, latents, reference, level, text, pooled, where, ids, None,
                             painting.reference_skip, painting.reference_channels)  # fmt: skip
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return to_pictures(decode(vae, unpack(latents, height, width, painting.packing)))


class PrimerTask:
    """Latents and places in, a velocity out. Without a cache pages are drawn while it learns."""

    def __init__(
        self, stage: PrimerStage, transformer: FluxTransformer2DModel, vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler, painting: Painting, cache: EditCache | None, seed: int,
    ):  # fmt: skip
        self.stage, self.vae, self.scheduler, self.cache, self.seed = stage, vae, scheduler, cache, seed
        self.painting = painting
        self.model = Primer(transformer, painting, stage.ema_decay > 0)
        self._shown = [draw_edit(seed, "test", family, size=stage.size) for seed, family in enumerate(EDIT_FAMILIES)]

    def batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        if self.cache is None:
            pairs = PrimerPairs(self.stage, self.seed)
            return live_pairs(self.stage, pairs, None, self.vae, first_step, workers, rank, world_size)
        data = EditSteps(self.stage, self.cache, self.seed, rank, world_size)
        return made_ahead(data, first_step, workers)

    def count(self, batch: dict) -> int:
        return len(batch["target"])

    def loss(self, model, batch: dict) -> torch.Tensor:
        return model(batch, flow_shift(self.scheduler, batch["weight"][0].numel() // self.painting.packing**2))

    def after_step(self, model: Primer, step: int) -> None:
        if hasattr(model, "average"):
            model.average.follow(model, self.stage.ema_decay, step)

    def look(self, model: Primer, folder: Path) -> None:
        """`edits.png`: new edits as the averaged weights draw them."""
        painter = model.average["transformer"] if hasattr(model, "average") else model.transformer
        drawn = paint_by_places(painter, self.vae, self.scheduler, self.painting, self._shown, SHEET_STEPS)
        results_sheet(self._shown, drawn).save(folder / "edits.png")

    def write(self, model: Primer, state: dict[str, torch.Tensor], folder: Path) -> None:
        """The transformer as `FluxTransformer2DModel.from_pretrained` reads it."""
        kept = "average.transformer." if hasattr(model, "average") else "transformer."
        with torch.device("meta"):
            new = type(model.transformer).from_config(model.transformer.config)
        own = {name.removeprefix(kept): value for name, value in state.items() if name.startswith(kept)}
        new.load_state_dict(own, assign=True)
        new.save_pretrained(folder)


def edit_primer(recipe: Recipe, name: str, run: Path, **options) -> Path:
    """Runs the stage in `run/edit_primer`, resuming what is there; returns the folder of the transformer."""
    stage, out = recipe.stages[name], run / name
    path = stage.vae or str(run / "vae" / "model")
    if not stage.vae and not Path(path).is_dir():
        raise RecipeError(f"the primer needs {path}: run `vae` first, or name `vae` in the stage.")
    vae = AutoencoderKL.from_pretrained(path).to(PartialState().device).eval()
    layout = PRESETS["mini"]["pipeline"] | stage.layout.model_dump(exclude_none=True)
    painting = Painting.of(layout)
    channels = token_channels(vae, painting.packing, painting.reference_channels)
    torch.manual_seed(recipe.seed)
    parts = build("mini", transformer=channels | stage.transformer)
    width = parts["transformer"].config.joint_attention_dim
    if width < NUMBERS:
        raise RecipeError(f"the transformer's text stream has {width} channels; what becomes of a place takes "
                          f"{NUMBERS}. Raise joint_attention_dim.")  # fmt: skip
    if stage.primer:
        parts["transformer"] = like(parts["transformer"], stage.primer)
    cache = None
    if not stage.live:
        cache = build_cache(out / "cache", PrimerPairs(stage, recipe.seed), None, vae,
                            vae_scale(vae) * painting.packing, options.get("workers", 1))  # fmt: skip
    task = PrimerTask(stage, parts["transformer"], vae, parts["scheduler"], painting, cache, recipe.seed)
    return train(name, stage, task, out, seed=recipe.seed, fsdp=recipe.fsdp, **options)
