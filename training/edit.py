"""Stages `edit` and `edit_joint`: connector and diffusion transformer learn to repaint, by flow matching.

Step1X-Edit (arXiv 2504.17761, section 3): the model that sees reads picture and instruction, its hidden states steer
the transformer, and the picture's own latents stand beside the noisy ones. `edit` keeps the model that sees frozen, so
that its embeddings are made once; `edit_joint` may fine-tune it together with the painter. With `lora` both train
adapters alone, for the released size on one GPU.
"""

import copy
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import FluxTransformer2DModel
from diffusers.hooks import apply_layerwise_casting
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from edit import EditPipeline
from edit.conditioning import Conditioning, embed, pad, text_stream
from edit.flow import flow_shift, skip_reference_output
from edit.latents import vae_scale
from training.edit_batches import Average, EditSteps, Painting, levels
from training.edit_live import live_pairs
from training.edit_pairs import EditCache, Pairs, Reader, build_cache
from training.edit_places import NUMBERS, PLACES, importance
from training.edit_sheet import results_sheet
from training.edit_stages import EditStage, Lora
from training.edit_start import Start, start
from training.loop import made_ahead, train
from training.recipe import Recipe
from training.schedule import RecipeError
from training.world.edits import EDIT_FAMILIES, draw_edit

PAINTERS = ("connector", "transformer")
SHEET_STEPS = 16  # of sampling, for the sheet that is drawn while training


class Foresight(nn.Module):
    """A second loss: the connector's tokens of the places of the picture spell what becomes of each, see
    `training.edit_places`.

    Through all of the painter, what an instruction means and where is learnt slowly; here it is learnt at once, and the
    painter finds it at its own place. It is no part of the editor and has no weights.

    Args:
        weight: of this loss beside the velocity's.
        emphasis: extra weight of places of which something becomes. What is uncertain is then said too loudly: with 12,
            a chance of 7 % that something becomes of a place is told as one half, and taken for a yes.
    """

    def __init__(self, weight: float, emphasis: float):
        super().__init__()
        self.weight, self.emphasis = weight, emphasis
        self.register_buffer("importance", importance(), persistent=False)

    def forward(self, text: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Its squared error, summed over samples.

        Args:
            text: (batch, tokens, width), the connector's.
            places: (batch, places, numbers), NaN where that is not known: such a sample has no part in it.
        """
        said = text[:, 1 : 1 + PLACES, :NUMBERS].float()
        known = places.isfinite()
        error = torch.where(known, said - places.nan_to_num(), 0.0).square() @ self.importance
        weight = 1 + self.emphasis * (places.nan_to_num() != 0).any(-1)
        return self.weight * ((error * weight).sum(1) / weight.sum(1)).sum()


class Editor(nn.Module):
    """What is trained, with its loss inside one forward pass, and the averaged weights beside it."""

    def __init__(
        self, parts: dict[str, nn.Module], options: dict, average: bool, foresight: Foresight | None = None,
    ):  # fmt: skip
        """`options` are those of `EditPipeline`."""
        super().__init__()
        self.connector, self.transformer = parts["connector"], parts["transformer"]
        self.conditioning, self.painting = Conditioning(**options["conditioning"]), Painting.of(options)
        if average:
            self.average = Average({name: parts[name] for name in PAINTERS})
        self.foresight = foresight
        skip_reference_output(self.transformer)

    def forward(self, batch: dict, mu: float, read=None) -> torch.Tensor:
        """The squared error of the velocity, weighted by latent, summed over samples; and that of the foresight.

        Args:
            batch: see `EditSteps`; with `foresight_alone` the transformer has no part in it.
            mu: the resolution's shift of the noise levels.
            read: makes embeddings of pictures and instructions, where they are not in the batch.
        """
        if "hidden" in batch:
            hidden, mask = batch["hidden"], batch["mask"]
        else:
            embeddings = batch["embeddings"] if read is None else read(batch["pictures"], batch["instructions"])
            hidden, mask = pad(embeddings, self.conditioning.padded_tokens)
        level = levels(batch, mu)
        text, pooled = self.connector.refine(hidden, level, mask)
        foreseen = 0.0
        if self.foresight is not None:
            foreseen = self.foresight(text, batch["places"])
            if batch["foresight_alone"]:
                # Processes that share their gradients wait for those of all weights.
                shared = PartialState().num_processes > 1
                return foreseen + 0.0 * sum(p.sum() for p in self.transformer.parameters()) if shared else foreseen
        text, size = self.connector.sharpen(text), batch["weight"].shape[-2:]
        given, told, bias = text_stream(mask, *size, self.conditioning, self.painting.packing, hidden.dtype)
        return self.painting.error(self.transformer, batch, level, text[:, given], pooled, told, bias) + foreseen


class EditTask:
    """Pairs in, a velocity out."""

    def __init__(
        self, stage: EditStage, start: Start, cache: EditCache | None, pairs: Pairs, seed: int,
        reader: Reader | None = None,
    ):  # fmt: skip
        """`cache` is that of the pairs; without one `reader` reads them while they are drawn (`stage.live`)."""
        self.stage, self.start, self.cache, self.reader, self.seed = stage, start, cache, reader, seed
        self.drawn, self.pairs = pairs, pairs if stage.train_vision_language else None
        painters = [start.parts[name] for name in PAINTERS]
        if stage.lora:
            for part in painters:
                part.requires_grad_(False)
            adapt(start.parts["transformer"], stage.lora)
        if stage.gradient_checkpointing:
            start.parts["transformer"].enable_gradient_checkpointing()
        if stage.compile:
            transformer = start.parts["transformer"]
            for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks[:-1]]:
                block.compile(dynamic=True)
        average = stage.ema_decay > 0 and not stage.lora
        self.model = Editor(start.parts, start.options, average, self._foresight())
        if stage.lora:
            _keep_trained_weights(self.model)
        self._shown = [draw_edit(seed, "test", family, size=stage.size) for seed, family in enumerate(EDIT_FAMILIES)]
        self._told = None
        if stage.train_vision_language:
            self.model.vision_language_model = start.model
        else:
            # All that will be wanted of it; beside the painter at the released size there is no room for it.
            self._told = self._tell()
            start.model = start.processor = None

    def _foresight(self) -> Foresight | None:
        if not self.stage.foresight:
            return None
        side, width = self.start.conditioning.view_side, self.start.parts["transformer"].config.joint_attention_dim
        if side**2 != PLACES or width < NUMBERS:
            raise RecipeError(
                f"foresight needs a model that sees a picture in one view of {PLACES} tokens, and a text stream of at "
                f"least {NUMBERS} channels to spell them in; view_side is {side} and the stream {width} wide. Leave "
                f"`foresight` out."
            )
        return Foresight(self.stage.foresight, self.stage.changed_weight)

    def batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        if self.stage.live:
            vae = self.start.parts["vae"]
            return live_pairs(self.stage, self.drawn, self.reader, vae, first_step, workers, rank, world_size)
        data = EditSteps(self.stage, self.cache, self.seed, rank, world_size, self.pairs, self.start.conditioning)
        return made_ahead(data, first_step, workers)

    def count(self, batch: dict) -> int:
        return len(batch["weight"])

    def loss(self, model, batch: dict) -> torch.Tensor:
        mu = flow_shift(self.start.parts["scheduler"], batch["weight"][0].numel() // self.start.packing**2)
        return model(batch, mu, self._read if self.pairs is not None else None)

    def _read(self, pictures, instructions) -> list[torch.Tensor]:
        # What `embed` does, with gradients.
        return embed.__wrapped__(
            self.start.model, self.start.processor, pictures, instructions, self.start.conditioning
        )

    def after_step(self, model: Editor, step: int) -> None:
        if hasattr(model, "average"):
            model.average.follow(model, self.stage.ema_decay, step)

    def _tell(self) -> dict[str, list[torch.Tensor]]:
        return self.start.told([e.before for e in self._shown], [e.instruction for e in self._shown])

    def look(self, model: Editor, folder: Path) -> None:
        """`edits.png`: new edits as the averaged weights make them."""
        painters = model.average if hasattr(model, "average") else model
        pipeline = self.start.pipeline({name: getattr(painters, name) for name in PAINTERS})
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(self._shown))]
        painted = pipeline([e.before for e in self._shown], generator=generators, num_inference_steps=SHEET_STEPS,
                           batch_size=1 if self.stage.lora else 4, **(self._told or self._tell())).images  # fmt: skip
        results_sheet(self._shown, painted).save(folder / "edits.png")

    def write(self, model: Editor, state: dict[str, torch.Tensor], folder: Path) -> None:
        """The editor as `EditPipeline.from_pretrained` reads it; with `lora` the adapters alone."""
        if self.stage.lora:
            layers = get_peft_model_state_dict(model.transformer, state_dict=_own(state, "transformer."))
            made_with = model.transformer.peft_config["default"].to_dict()
            EditPipeline.save_lora_weights(folder, layers, transformer_lora_adapter_metadata=made_with)
            return
        kept = "average." if hasattr(model, "average") else ""
        painters = {name: _filled(getattr(model, name), state, f"{kept}{name}.") for name in PAINTERS}
        if self.stage.train_vision_language:
            seeing = copy.deepcopy(self.start.model)
            seeing.load_state_dict(_own(state, "vision_language_model."), strict=False)  # tied weights come once
            self.start.pipeline(painters, seeing).save_pretrained(folder)
        else:
            self.start.pipeline(painters).save_pretrained(folder, vision_language=self._beside(folder))

    def _beside(self, folder: Path) -> str:
        """Where the model that sees is, from the editor's folder, so that a run can be moved; or its hub id."""
        path = Path(self.start.model_path)
        return os.path.relpath(path, folder) if path.is_dir() else self.start.model_path


def adapt(transformer: FluxTransformer2DModel, lora: Lora) -> None:
    """Freezes the transformer and gives it adapters to train, in float32 whatever its own precision."""
    transformer.requires_grad_(False)
    if lora.fp8:
        for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
            # As in diffusers, the modulation keeps its precision: its errors would be everywhere in the picture.
            apply_layerwise_casting(blocks, torch.float8_e4m3fn, torch.bfloat16, skip_modules_pattern=("norm",))
    transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _keep_trained_weights(model: Editor) -> None:
    """Leaves what is frozen out of checkpoints: they would be the whole released model, every time."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    def leave_out(module, state, prefix, metadata) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    def do_not_miss(module, keys) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if name.removeprefix("module.") not in frozen]

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_post_hook(do_not_miss)


def _own(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _filled(module: nn.Module, state: dict[str, torch.Tensor], prefix: str) -> nn.Module:
    """A new module like this one with weights gathered from all devices."""
    with torch.device("meta"):
        new = type(module).from_config(module.config)
    new.load_state_dict(_own(state, prefix), assign=True)
    return new


def edit(recipe: Recipe, name: str, run: Path, **options) -> Path:
    """Runs the stage `name` (`edit` or `edit_joint`) in `run/name`, resuming what is there.

    Returns:
        The folder of the trained editor, or of its adapters.
    """
    stage, out = recipe.stages[name], run / name
    if name == "edit_joint" and not stage.editor:
        stage = stage.model_copy(update={"editor": str(run / "edit" / "model")})
        if not Path(stage.editor).is_dir():
            raise RecipeError(f"edit_joint needs {stage.editor}: run `edit` first, or name `editor` in the stage.")
    begun = start(stage, run, recipe.seed)
    pairs = Pairs(stage, recipe.seed)
    device = PartialState().device
    begun.model.to(device).eval()
    begun.parts["vae"].to(device).eval()
    multiple = vae_scale(begun.parts["vae"]) * begun.packing
    reader = Reader(begun.model, begun.processor, begun.conditioning, bool(stage.planned))
    if stage.live:
        task = EditTask(stage, begun, None, pairs, recipe.seed, reader)
    else:
        cache = build_cache(out / "cache", pairs, reader, begun.parts["vae"], multiple, options.get("workers", 1))
        task = EditTask(stage, begun, cache, pairs, recipe.seed)
    del reader  # nor is the model that sees kept by it, see `EditTask`
    return train(name, stage, task, out, seed=recipe.seed, fsdp=recipe.fsdp, **options)
