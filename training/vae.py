"""Stage `vae`: the editor's small autoencoder, an `AutoencoderKL` trained to give pictures back.

The editor paints latents, so what this model cannot reconstruct no edit can show: its reconstruction is the ceiling
that `python -m training report --edits` puts beside every score. Loss: absolute error and a little Kullback-Leibler
divergence (Kingma and Welling, 2014; Rombach et al., 2022), no adversary and no perceptual network: the world's
pictures are edges and flat areas, which an absolute error keeps sharp. A squared error beside it weighs what is far
off: a small thing in the wrong colour.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from edit.configuration import build
from edit.latents import decode, encode
from training import live
from training.edit_stages import VaeStage
from training.loop import made_ahead, train
from training.recipe import Recipe
from training.world import draw_sample
from training.world.edits import draw_edit
from training.world.sample import stream

SHOWN = 8  # pictures of the sheet
LOOKED_AT = 64  # pictures that latents are measured on
AT_ONCE = 16


def to_bytes(pictures: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """RGB pictures as (pictures, 3, height, width), 0 to 255; resized to `size` (width, height)."""
    sized = [p if p.size == size else p.resize(size, Image.Resampling.LANCZOS) for p in pictures]
    return torch.stack([pil_to_tensor(p) for p in sized])


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """0 to 255 as [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(pictures: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """RGB pictures as (pictures, 3, height, width) in [-1, 1]; resized to `size` (width, height)."""
    return scaled(to_bytes(pictures, size))


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """The inverse of `to_pixels`, values out of range clipped."""
    return [to_pil_image(p) for p in ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()]


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(4 / max(error, 1e-12))


class Pictures(Dataset):
    """Item t is this rank's share of the pictures of step t: a pure function of (seed, t)."""

    def __init__(self, stage: VaeStage, seed: int, rank: int = 0, world_size: int = 1):
        if stage.batch_size % world_size:
            raise ValueError(f"batch_size {stage.batch_size} does not divide by {world_size} processes.")
        self.stage, self.seed, self.rank, self.world_size = stage, seed, rank, world_size
        self._size = (stage.size, stage.size)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[dict]:
        own = range(self.rank, self.stage.batch_size, self.world_size)
        pixels = to_pixels([self.draw(step, i) for i in own], self._size)
        if self.stage.crop:
            pixels = torch.stack([self._cropped(p, step, i) for p, i in zip(pixels, own, strict=True)])
        parts = self.stage.gradient_accumulation_steps
        return [{"pixels": pixels[part::parts]} for part in range(parts) if len(pixels[part::parts])]

    def draw(self, step: int, i: int) -> Image.Image:
        """The i-th picture of a step."""
        rng = stream("vae", self.seed, step, i)
        if rng.random() < self.stage.other_pictures:
            return draw_sample(rng.getrandbits(48), rng.choice(("easy", "train"))).picture
        seed, families = rng.getrandbits(48), self.stage.families
        edit = draw_edit(seed, "train", rng.choice(families) if families else None)
        return rng.choice((edit.before, edit.after))

    def _cropped(self, pixels: torch.Tensor, step: int, i: int) -> torch.Tensor:
        """A window: convolutions learn from it what they learn from the whole, so that a step sees more pictures."""
        rng, side = stream("crop", self.seed, step, i), self.stage.crop
        y, x = (rng.randint(0, self.stage.size - side) for _ in range(2))
        return pixels[:, y : y + side, x : x + side]


class DrawnPictures(Dataset):
    """Chunk i of whole pictures, `{pixels: (pictures, 3, size, size), 0 to 255}`, for `training.live`."""

    def __init__(self, stage: VaeStage, seed: int):
        self.pictures, self._size = Pictures(stage, seed), (stage.size, stage.size)

    def __getitem__(self, i: int) -> live.Rows:
        return {"pixels": to_bytes([self.pictures.draw(i, k) for k in range(live.CHUNK)], self._size)}


class Reconstruction(nn.Module):
    """The autoencoder with its loss inside one forward pass, as data parallelism wants it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, kl_weight: float, squared_weight: float) -> torch.Tensor:
        """The loss summed over pictures of (pictures, 3, height, width)."""
        posterior = self.vae.encode(pixels).latent_dist
        again = self.vae.decode(posterior.sample()).sample
        difference = again.float() - pixels
        error = (difference.abs() + squared_weight * difference.square()).mean(dim=(1, 2, 3))
        # Of the standard normal, by latent value; diffusers' own `kl()` sums over them.
        kl = posterior.kl() / posterior.mean[0].numel()
        return (error + kl_weight * kl).sum()


class VaeTask:
    """Pictures in, the same pictures out."""

    def __init__(self, stage: VaeStage, seed: int):
        torch.manual_seed(seed)
        self.stage, self.seed = stage, seed
        saved = stage.autoencoder
        vae = AutoencoderKL.from_pretrained(saved).float() if saved else build("mini", vae=stage.vae)["vae"]
        if stage.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        # Twice as fast on CPUs, and what tensor cores want.
        self.model = Reconstruction(vae).to(memory_format=torch.channels_last)

    def batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        if self.stage.live:
            return self._live_batches(first_step, workers, rank, world_size)
        data = Pictures(self.stage, self.seed, rank, world_size)
        return made_ahead(data, first_step, workers)

    def _live_batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        def batches(rows: live.Rows, step: int, generator: torch.Generator) -> list[dict]:
            pixels, parts = scaled(rows["pixels"]), self.stage.gradient_accumulation_steps
            return [{"pixels": part} for part in pixels.chunk(parts)]

        return live.live_steps(
            self.stage, DrawnPictures(self.stage, self.seed), dict, batches, self.model.vae.device, seed=self.seed,
            first=first_step, workers=workers, rank=rank, world_size=world_size,
        )  # fmt: skip

    def count(self, batch: dict) -> int:
        return len(batch["pixels"])

    def loss(self, model, batch: dict) -> torch.Tensor:
        return model(batch["pixels"].contiguous(memory_format=torch.channels_last), self.stage.kl_weight,
                     self.stage.squared_weight)  # fmt: skip

    def after_step(self, model, step: int) -> None:
        """Nothing to do."""

    def look(self, model, folder: Path) -> None:
        """`pictures.png`: new pictures above, what came back below."""
        pixels = to_pixels([draw_edit(seed, "test").before for seed in range(SHOWN)], (self.stage.size,) * 2)
        again = to_pictures(reconstruct(model.vae, pixels.to(model.vae.device)))
        side = self.stage.size
        sheet = Image.new("RGB", (side * SHOWN, side * 2))
        for i, (picture, back) in enumerate(zip(to_pictures(pixels), again, strict=True)):
            sheet.paste(picture, (i * side, 0))
            sheet.paste(back, (i * side, side))
        sheet.save(folder / "pictures.png")

    @torch.no_grad()
    def write(self, model, state: dict[str, torch.Tensor], folder: Path) -> None:
        vae = model.vae
        vae.load_state_dict({name.removeprefix("vae."): value for name, value in state.items()})
        # The editor learns on latents of mean 0 and deviation 1 in every channel: the configuration says what they are.
        # What an earlier one said of others, of which this one went on, is not to be measured through.
        vae.register_to_config(latents_mean=None, latents_std=None)
        pixels = to_pixels([draw_edit(seed, "train").before for seed in range(LOOKED_AT)], (self.stage.size,) * 2)
        pixels = pixels.to(vae.device)
        latents = torch.cat([encode(vae, part) for part in pixels.split(AT_ONCE)]).transpose(0, 1).flatten(1)
        vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
        vae.save_pretrained(folder)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures through the autoencoder and back, in [-1, 1]."""
    return torch.cat([decode(vae, encode(vae, part)) for part in pixels.split(AT_ONCE)]).clamp(-1, 1)


def vae(recipe: Recipe, out: Path, **options) -> Path:
    """Runs the stage in `out` (resuming what is there) and returns the folder of the trained autoencoder."""
    stage = recipe.stages["vae"]
    return train("vae", stage, VaeTask(stage, recipe.seed), out, seed=recipe.seed, **options)
