"""What a call of the pipeline may be given; everything is checked here, before anything is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from edit.latents import token_channels

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Tensors a callback may ask for.
CALLBACK_TENSORS = ("latents", "denoised")

# How candidates are judged: (the picture, the instruction, its edits) to one score each, the higher the better.
Judge = Callable[[Image.Image, str, list[Image.Image]], Sequence[float]]


class EditError(ValueError):
    """The edit makes no sense as asked; the message is one line with the remedy."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of `EditPipeline.__call__`, which see. Raises EditError for what cannot be used.

    Attributes:
        pictures: how many.
        levels: the size levels that the editor has.
        reads: whether the pipeline has a model that can read prompts.
    """

    pictures: int
    levels: Sequence[int]
    reads: bool
    prompt: str | Sequence[str] | None
    negative_prompt: str | Sequence[str]
    steps: int
    guidance: float
    strength: float
    size_level: int | None
    seeds: int
    generator: torch.Generator | Sequence[torch.Generator] | None
    prompt_embeds: Sequence[torch.Tensor] | None
    negative_prompt_embeds: Sequence[torch.Tensor] | None
    batch_size: int
    judge: Judge | None
    output_type: str
    tensors: Sequence[str]

    def __post_init__(self):
        if not self.pictures:
            raise EditError("there is no picture to edit; give at least one.")
        self._check_words()
        for name, value, most in (
            ("num_inference_steps", self.steps, 1000),
            ("num_images_per_prompt", self.seeds, 64),
            ("batch_size", self.batch_size, 64),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise EditError(f"{name} is {value!r}; use a whole number from 1 to {most}.")
        if not 0 < self.strength <= 1:
            raise EditError(
                f"strength is {self.strength}; use a value above 0, the picture itself, up to 1, pure noise."
            )
        if not 0 <= self.guidance <= 100:
            raise EditError(f"guidance_scale is {self.guidance}; use a value from 0 to 100, 6 for instance.")
        if self.size_level is not None and self.size_level not in self.levels:
            raise EditError(f"size_level is {self.size_level}; this editor has {', '.join(map(str, self.levels))}.")
        results = self.pictures * self.seeds
        if isinstance(self.generator, list | tuple) and len(self.generator) != results:
            raise EditError(
                f"there are {len(self.generator)} generators for {self.pictures} pictures with {self.seeds} seeds "
                f"each; give {results}, or one for all."
            )
        if self.output_type not in OUTPUT_TYPES:
            raise EditError(f"output_type is {self.output_type!r}; use one of {', '.join(OUTPUT_TYPES)}.")
        if self.judge is not None and (self.output_type != "pil" or self.prompt_embeds is not None):
            raise EditError("a judge looks at pictures and instructions; use output_type 'pil' and a prompt.")
        if unknown := [name for name in self.tensors if name not in CALLBACK_TENSORS]:
            raise EditError(f"no tensor is called {unknown[0]!r}; use {' or '.join(CALLBACK_TENSORS)}.")

    def _check_words(self) -> None:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise EditError("give either a prompt or prompt_embeds.")
        for name, embeds in (("prompt", self.prompt_embeds), ("negative_prompt", self.negative_prompt_embeds)):
            for what, given in ((name, getattr(self, name)), (f"{name}_embeds", embeds)):
                if given is not None and not isinstance(given, str) and len(given) != self.pictures:
                    raise EditError(f"there are {len(given)} {what} for {self.pictures} pictures; give one each.")
        if not all(isinstance(text, str) for text in (*self.prompts, *self.negatives)):
            raise EditError(f"a prompt is no text: {self.prompt!r}, {self.negative_prompt!r}; give one text a picture.")
        if self.prompt is not None and not all(text.strip() for text in self.prompts):
            raise EditError("the instruction is empty; say what to change, like 'make the red circle blue'.")
        needed = self.prompt_embeds is None or (self.guided and self.negative_prompt_embeds is None)
        if needed and not self.reads:
            raise EditError("the pipeline has no vision-language model; load it with one, or pass both embeddings.")

    @property
    def guided(self) -> bool:
        """Whether there are two branches."""
        return self.guidance > 1

    @property
    def prompts(self) -> list[str]:
        """One a picture."""
        return self._each(self.prompt)

    @property
    def negatives(self) -> list[str]:
        return self._each(self.negative_prompt)

    def generators(self, index: int) -> list[torch.Generator | None]:
        """Of picture `index`, one a seed."""
        if isinstance(self.generator, list | tuple):
            return list(self.generator[index * self.seeds : (index + 1) * self.seeds])
        return [self.generator] * self.seeds

    def _each(self, text: Any) -> list:
        return [text or ""] * self.pictures if text is None or isinstance(text, str) else list(text)


def check_layout(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, packing: int, reference_channels: bool
) -> None:
    """Raises EditError where the transformer is not for tokens of these latents; see `latents.token_channels`."""
    taken, given = transformer.config.in_channels, transformer.config.out_channels or transformer.config.in_channels
    wanted = token_channels(vae, packing, reference_channels)
    if {"in_channels": taken, "out_channels": given} != wanted:
        raise EditError(
            f"the transformer takes {taken} channels and gives {given}; of {vae.config.latent_channels} latent ones "
            f"packing {packing} and reference_channels {reference_channels} make {wanted['in_channels']} and "
            f"{wanted['out_channels']}. Give the ones it was trained with (in a recipe, `layout`), or that autoencoder."
        )
