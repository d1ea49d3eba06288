"""Instruction-guided editing: picture and instruction in, picture out (Step1X-Edit, arXiv 2504.17761)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from edit.conditioning import Conditioning, embed, pad, text_stream
from edit.connector import EditConnector
from edit.flow import noised, set_schedule, skip_reference_output, velocity
from edit.inputs import CALLBACK_TENSORS, Inputs, Judge, check_layout
from edit.jobs import Job, batches, best
from edit.latents import PACKING, decode, encode, image_ids, pack, target_size, unpack, vae_scale
from edit.lora import EditLoraMixin
from vlm.answering import load
from vlm.pictures import open_picture

# Those of Step1X-Edit.
SIZE_LEVELS = (512, 768, 1024)

# Text tokens the connector refines at once, over noise levels and pictures together; bounds its memory.
CONNECTOR_TOKENS = 16384


@dataclass
class EditPipelineOutput(BaseOutput):
    """`images`: one a picture and seed, or a picture where a judge chose; `scores`: the judge's, a list a picture."""

    images: list
    scores: list[list[float]] | None = None


class EditPipeline(DiffusionPipeline, EditLoraMixin):
    """Edits pictures by instruction.

    Args:
        vae, transformer, connector, scheduler: the painter; see `edit.configuration` for the two scales.
        vision_language_model, processor: the model that reads picture and instruction, ours or Qwen2.5-VL.
        conditioning: the values of a `Conditioning`.
        packing: latents a side of a token.
        size_levels: the sizes in which pictures are edited; level n is about n² pixels.
        reference_index: first position of the reference tokens, see `latents.image_ids`.
        reference_skip: whether the transformer predicts the change alone; and reference_channels, whether the reference
            stands in its channels too: see `flow.velocity`.
        damped_above, damping: above this noise level the guidance is divided by the length of what it adds a token,
            where that is above 1, to the power `damping`; 1 for never.
        num_inference_steps, guidance_scale: what a call uses that does not say.
        vision_language: where the model is when it is not saved with the pipeline: a folder, relative to the
            pipeline's own, or a name that `vlm.answering.load` knows.

    Raises:
        EditError: the transformer is not for such tokens.
    """

    model_cpu_offload_seq = "vision_language_model->connector->transformer->vae"
    _optional_components = ["vision_language_model", "processor"]
    _callback_tensor_inputs = list(CALLBACK_TENSORS)

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: FluxTransformer2DModel,
        connector: EditConnector,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vision_language_model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        conditioning: dict | None = None,
        size_levels: list[int] | None = None,
        reference_index: int = 0,
        reference_skip: bool = False,
        reference_channels: bool = False,
        packing: int = PACKING,
        damped_above: float = 1.0,
        damping: float = 0.4,
        num_inference_steps: int = 28,
        guidance_scale: float = 6.0,
        vision_language: str | None = None,
    ):
        super().__init__()
        check_layout(transformer, vae, packing, reference_channels)
        self.register_modules(
            vae=vae,
            transformer=transformer,
            connector=connector,
            scheduler=scheduler,
            vision_language_model=vision_language_model,
            processor=processor,
        )
        self.register_to_config(
            size_levels=list(size_levels or SIZE_LEVELS),
            reference_index=reference_index,
            reference_skip=reference_skip,
            reference_channels=reference_channels,
            packing=packing,
            damped_above=damped_above,
            damping=damping,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            vision_language=vision_language,
        )
        self.conditioning = Conditioning(**(conditioning or {}))
        self.vae_scale_factor = vae_scale(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.token_pixels)
        self._interrupt = False
        skip_reference_output(transformer)

    @property
    def conditioning(self) -> Conditioning:
        """How instructions become embeddings. Assign another to change it, one `from_file` for instance."""
        return self._conditioning

    @conditioning.setter
    def conditioning(self, value: Conditioning) -> None:
        self._conditioning = value
        self.register_to_config(conditioning=value.to_dict())

    @property
    def token_pixels(self) -> int:
        """Pixels a side of one token; the sides of an edited picture are multiples of it."""
        return self.vae_scale_factor * self.config.packing

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call, over all its batches."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` from a callback or another thread, and the call ends after the running step."""
        return self._interrupt

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs) -> "EditPipeline":
        """As in diffusers; a model that was not saved with the pipeline is loaded from where its config says."""
        if "vision_language_model" not in kwargs and (where := cls.load_config(path).get("vision_language")):
            beside = Path(path) / where
            dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
            model, processor = load(
                str(beside.resolve()) if beside.is_dir() else where,
                dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
            )
            kwargs |= {"vision_language_model": model, "processor": processor}
        return super().from_pretrained(path, **kwargs)

    def save_pretrained(self, path: str | Path, vision_language: str | None = None, **kwargs) -> None:
        """As in diffusers.

        Args:
            vision_language: when given, the model is not copied; this is where it will be found, see the class.
        """
        if vision_language is None:
            self.register_to_config(vision_language=None)
            super().save_pretrained(path, **kwargs)
            return
        model, processor = self.vision_language_model, self.processor
        self.register_modules(vision_language_model=None, processor=None)
        self.register_to_config(vision_language=vision_language)
        try:
            super().save_pretrained(path, **kwargs)
        finally:
            self.register_modules(vision_language_model=model, processor=processor)

    @torch.no_grad()
    def __call__(
        self,
        image: str | Path | Image.Image | Sequence,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        strength: float = 1.0,
        size_level: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt_embeds: Sequence[torch.Tensor] | None = None,
        negative_prompt_embeds: Sequence[torch.Tensor] | None = None,
        batch_size: int = 4,
        judge: Judge | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["EditPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> EditPipelineOutput | tuple:
        """Edits one picture or several.

        Args:
            image: a picture or a list of them, in any form `vlm.open_picture` reads.
            prompt: the instruction, one for all pictures or one each.
            negative_prompt: what to be guided away from, likewise; the empty instruction means the picture as it is.
            num_inference_steps, guidance_scale: the config's by default; at a guidance of 1 or less there is one
                branch.
            strength: where sampling starts, from 1, pure noise, down to nearly 0, the picture itself: its latents
                noised to that part of the schedule.
            size_level: one of the config's `size_levels`; by default the one nearest to each picture's own size.
            num_images_per_prompt: seeds a picture.
            generator: one a result, in the order of the results, or a single one that draws for all of them in turn.
            prompt_embeds, negative_prompt_embeds: what `encode_prompt` gave, in place of the prompts.
            batch_size: results that are computed at once, where their sizes agree.
            judge: keeps the best of each picture's seeds.
            output_type: `pil`, pictures in the size of the originals; `np` (height, width, 3) or `pt`
                (3, height, width) in 0 to 1, or `latent` (tokens, channels), all in the size they were edited in.
            callback_on_step_end: called with the pipeline, the step counted over all batches, the timestep and the
                tensors named in `callback_on_step_end_tensor_inputs`; may return `latents` to go on from. The names
                are `latents` and `denoised`, the picture expected from here, both packed (batch, tokens, channels);
                `preview` shows them.

        Returns:
            `EditPipelineOutput`, picture by picture and seed by seed; a tuple (images,) without `return_dict`.

        Raises:
            PictureError: a picture cannot be read.
            EditError: an argument is out of range or does not fit the others.
            ConditioningError: an instruction is too long.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = float(self.config.guidance_scale if guidance_scale is None else guidance_scale)
        many = isinstance(image, list | tuple)
        call = Inputs(
            pictures=len(image) if many else 1,
            levels=self.config.size_levels,
            reads=self.vision_language_model is not None,
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            strength=strength,
            size_level=size_level,
            seeds=num_images_per_prompt,
            generator=generator,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            batch_size=batch_size,
            judge=judge,
            output_type=output_type,
            tensors=callback_on_step_end_tensor_inputs,
        )
        pictures = [open_picture(one) for one in (image if many else [image])]
        self._interrupt = False

        if prompt_embeds is None:
            prompt_embeds = self.encode_prompt(pictures, call.prompts, batch_size)
        if not call.guided:
            negative_prompt_embeds = [None] * len(pictures)
        elif negative_prompt_embeds is None:
            negative_prompt_embeds = self.encode_prompt(pictures, call.negatives, batch_size)
        jobs = []
        for index, picture in enumerate(pictures):
            size = target_size(*picture.size, size_level or self._level(picture), self.token_pixels)
            noise = [self._draw(size, draw) for draw in call.generators(index)]
            jobs.append(Job(picture, size, prompt_embeds[index], negative_prompt_embeds[index], noise))

        results: dict[tuple[int, int], torch.Tensor] = {}
        planned = list(batches(jobs, batch_size))
        self._num_timesteps, self._step = len(planned) * max(1, round(steps * strength)), 0
        with self.progress_bar(total=self._num_timesteps) as bar:
            for batch in planned:
                latents = self._denoise(jobs, batch, call, bar, callback_on_step_end)
                made = self._finish(latents, [jobs[index] for index, _ in batch], output_type)
                results |= dict(zip(batch, made, strict=True))
                if self._interrupt:
                    break
        self.maybe_free_model_hooks()

        images = [results[key] for key in sorted(results)]
        scores = None
        if judge is not None and not self._interrupt:
            images, scores = best(judge, pictures, call.prompts, images)
        return EditPipelineOutput(images=images, scores=scores) if return_dict else (images,)

    def _level(self, picture: Image.Image) -> int:
        side = (picture.width * picture.height) ** 0.5
        return min(self.config.size_levels, key=lambda level: abs(level - side))

    def encode_prompt(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], batch_size: int = 4
    ) -> list[torch.Tensor]:
        """One embedding a picture, (tokens, width), of its own length; see `conditioning.embed`."""
        made: list[torch.Tensor] = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            made += embed(self.vision_language_model, self.processor, pictures[part], prompts[part], self.conditioning)
        return made

    def _draw(self, size: tuple[int, int], generator: torch.Generator | None) -> torch.Tensor:
        """The noise of one result, packed (1, tokens, channels) in float32, whatever else is drawn in the call."""
        width, height = (side // self.vae_scale_factor for side in size)
        shape = (1, self.vae.config.latent_channels, height, width)
        return pack(randn_tensor(shape, generator, self._execution_device, torch.float32), self.config.packing)

    def _denoise(self, jobs: list[Job], batch: list[tuple[int, int]], call: Inputs, bar, callback) -> torch.Tensor:
        """The finished latents of a batch of one size, (results, tokens, channels) in float32."""
        device = self._execution_device
        # Seeds of one picture share its latents and its embeddings.
        held = list(dict.fromkeys(index for index, _ in batch))
        rows = torch.tensor([held.index(index) for index, _ in batch], device=device)
        own = [jobs[index] for index in held]
        width, height = (side // self.vae_scale_factor for side in own[0].size)
        self._grid = (height, width)

        packing = self.config.packing
        reference = pack(encode(self.vae, self._pixels(own).to(device)), packing).float()[rows]
        noise = torch.cat([jobs[index].noise[seed] for index, seed in batch])
        timesteps = set_schedule(self.scheduler, call.steps, noise.shape[1], call.strength, device)
        levels = (timesteps / self.scheduler.config.num_train_timesteps).float()
        latents = noise if call.strength == 1 else noised(reference, noise, levels[:1].expand(len(batch)))

        branches = [job.embedding for job in own]
        if call.guided:
            branches += [job.negative for job in own]
            rows = torch.cat([rows, rows + len(own)])
        branches = [embedding.to(device, self.connector.dtype) for embedding in branches]
        dtype, padded = self.transformer.dtype, self.conditioning.padded_tokens
        # Attention with a bias has no flash kernel on CUDA; there, padding is cheaper than a bias.
        hidden_states, mask = pad(branches, padded, collapse=device.type == "cpu")
        refined = self.refine(hidden_states, mask, levels)
        given, told, bias = text_stream(mask, height, width, self.conditioning, packing, dtype)
        bias = None if bias is None else bias[rows]
        ids = image_ids(height, width, self.config.reference_index, device, packing)
        copies = len(rows) // len(batch)
        reference = reference.to(dtype).repeat(copies, 1, 1)

        # What caches keep belongs to one batch.
        self.transformer._reset_stateful_cache()
        for number, (timestep, level, (text, pooled)) in enumerate(zip(timesteps, levels, refined, strict=True)):
            with self.transformer.cache_context("edit"):
                predicted = velocity(
                    self.transformer,
                    latents.to(dtype).repeat(copies, 1, 1),
                    reference,
                    level.expand(len(rows)),
                    text[rows, given],
                    pooled[rows],
                    ids,
                    told,
                    bias,
                    self.config.reference_skip,
                    self.config.reference_channels,
                ).float()
            if call.guided:
                predicted = self._guide(*predicted.chunk(2), call.guidance, float(level))
            denoised = latents - level * predicted
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            if callback is not None:
                known = {"latents": latents, "denoised": denoised}
                changed = callback(self, self._step, timestep, {name: known[name] for name in call.tensors}) or {}
                latents = changed.get("latents", latents)
            self._step += 1
            bar.update()
            if self._interrupt:
                # What the picture would have become is more use than what noise is left in it.
                return denoised if number + 1 < len(timesteps) else latents
        return latents

    def _pixels(self, jobs: list[Job]) -> torch.Tensor:
        """(pictures, 3, height, width) in -1 to 1, resized to the size they are edited in."""
        resized = [job.picture.resize(job.size, Image.Resampling.LANCZOS) for job in jobs]
        return torch.cat([self.image_processor.preprocess(picture) for picture in resized])

    def refine(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, levels: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The connector's output for every noise level, (rows, tokens, width) and (rows, pooled width) each.

        Nothing of it depends on the latents, so all levels are refined before the first step, many in one batch.

        Args:
            hidden_states, attention_mask: (rows, tokens, width) and (rows, tokens), of `conditioning.pad`.
            levels: (levels,), from 0 to 1.
        """
        rows, refined = len(attention_mask), []
        for part in levels.split(max(1, CONNECTOR_TOKENS // attention_mask.numel())):
            text, pooled = self.connector(
                hidden_states.repeat(len(part), 1, 1),
                part.repeat_interleave(rows).to(hidden_states.dtype),
                attention_mask.repeat(len(part), 1),
            )
            refined += zip(text.split(rows), pooled.split(rows), strict=True)
        return refined

    def _guide(self, wanted: torch.Tensor, unwanted: torch.Tensor, scale: float, level: float) -> torch.Tensor:
        difference = wanted - unwanted
        if level > self.config.damped_above:
            length = difference.norm(dim=-1, keepdim=True)
            difference = difference / length.clamp(min=1) ** self.config.damping
        return unwanted + scale * difference

    def _finish(self, latents: torch.Tensor, jobs: list[Job], output_type: str) -> list:
        """What `output_type` asks for, one a result."""
        if output_type == "latent":
            return list(latents)
        pixels = decode(self.vae, unpack(latents, *self._grid, self.config.packing))
        made = list(self.image_processor.postprocess(pixels.float(), output_type=output_type))
        if output_type == "pil":
            made = [
                image if image.size == job.picture.size else image.resize(job.picture.size, Image.Resampling.LANCZOS)
                for image, job in zip(made, jobs, strict=True)
            ]
        return made

    @torch.no_grad()
    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of the `latents` or `denoised` that a callback was given, in the size they are edited in."""
        pixels = decode(self.vae, unpack(latents, *self._grid, self.config.packing))
        return self.image_processor.postprocess(pixels.float(), output_type="pil")
