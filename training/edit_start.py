"""What the editor's stages begin with: fresh weights, a saved editor, or the released Step1X-Edit weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from edit import EditPipeline
from edit.checkpoints import load_released, load_released_vae
from edit.conditioning import Conditioning
from edit.configuration import PRESETS, mini_editor, new_scheduler
from edit.connector import EditConnector
from edit.latents import PACKING, token_channels
from training.edit_places import NUMBERS, SHARPENED
from training.edit_stages import EditStage
from training.schedule import RecipeError
from vlm.answering import load
from vlm.configuration import view_tokens

OPTIONS = (
    "conditioning",
    "size_levels",
    "reference_index",
    "reference_skip",
    "reference_channels",
    "packing",
    "damped_above",
    "damping",
    "num_inference_steps",
    "guidance_scale",
)


@dataclass
class Start:
    """What a stage begins with.

    Attributes:
        parts: vae, connector, transformer and scheduler.
        model, processor: the model that sees, None once it has said all that is needed of it; and `model_path`, the
            folder or hub id it came from.
        options: of `EditPipeline`, apart from its parts.
    """

    parts: dict
    model: PreTrainedModel | None
    processor: ProcessorMixin | None
    model_path: str
    options: dict

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning(**self.options["conditioning"])

    @property
    def packing(self) -> int:
        return self.options.get("packing", PACKING)

    def pipeline(self, painters: dict[str, nn.Module], model: PreTrainedModel | None = None) -> EditPipeline:
        """The editor with these painters, on the device they are on."""
        parts = self.parts | painters
        pipeline = EditPipeline(**parts, vision_language_model=model or self.model, processor=self.processor,
                                **self.options)  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def told(self, pictures: Sequence[Image.Image], instructions: Sequence[str]) -> dict[str, list[torch.Tensor]]:
        """What a call of the pipeline takes in place of the instructions, with and without them."""
        pipeline = self.pipeline({})
        return {
            "prompt_embeds": pipeline.encode_prompt(pictures, instructions),
            "negative_prompt_embeds": pipeline.encode_prompt(pictures, [""] * len(pictures)),
        }


def start(stage: EditStage, run: Path, seed: int) -> Start:
    """The editor to go on from, or a fresh one on the models of the run.

    Raises:
        RecipeError: a model of the run is missing; CheckpointError, ModelError or OSError: one cannot be read.
    """
    # Adapters alone are trained in float32; what they adapt needs no more than the precision it is computed in.
    dtype = torch.bfloat16 if stage.lora and stage.precision == "bf16" else torch.float32
    if stage.editor:
        return _saved(stage, run, dtype)
    if stage.released:
        return _released(stage, dtype)
    return _fresh(stage, run, seed)


def _saved(stage: EditStage, run: Path, dtype: torch.dtype) -> Start:
    pipeline = EditPipeline.from_pretrained(stage.editor, dtype=dtype)
    options = {name: pipeline.config[name] for name in OPTIONS}
    options["conditioning"] = options["conditioning"] | stage.conditioning
    parts = {name: getattr(pipeline, name) for name in ("vae", "connector", "transformer", "scheduler")}
    seen = pipeline.vision_language_model.config.get_text_config().hidden_size
    parts["connector"] = widened(parts["connector"], Conditioning(**options["conditioning"]).width(seen))
    # An editor of this run has learnt with the run's primer already.
    own = Path(stage.editor).resolve().is_relative_to(run.resolve())
    if primer := stage.primer if own else _primer(stage, run):
        take_primer(parts, primer)
    where = pipeline.config.vision_language
    beside = (Path(stage.editor) / where).resolve() if where else Path(stage.editor).resolve()
    path = str(beside) if not where or beside.is_dir() else where
    return Start(parts, pipeline.vision_language_model, pipeline.processor, path, options)


def _released(stage: EditStage, dtype: torch.dtype) -> Start:
    connector, transformer = load_released(stage.released, dtype)
    parts = {"connector": connector, "transformer": transformer, "vae": load_released_vae(stage.vae, dtype),
             "scheduler": new_scheduler()}  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(stage.vision_language, dtype=dtype)
    processor = AutoProcessor.from_pretrained(stage.vision_language)
    return Start(parts, model, processor, stage.vision_language, _options("step1x-edit", stage))


def _fresh(stage: EditStage, run: Path, seed: int) -> Start:
    found = {}
    for name, own in (("vision_language", "sft"), ("vae", "vae")):
        found[name] = getattr(stage, name) or str(run / own / "model")
        if not getattr(stage, name) and not Path(found[name]).is_dir():
            raise RecipeError(f"the editor needs {found[name]}: run `{own}` first, or name `{name}` in the stage.")
    model, processor = load(found["vision_language"], dtype=torch.float32)
    side = _view_side(processor)
    options = _options("mini", stage, view_side=side, only_places=bool(side))
    vae = AutoencoderKL.from_pretrained(found["vae"])
    channels = token_channels(vae, options["packing"], options["reference_channels"])
    torch.manual_seed(seed)
    width = (PRESETS["mini"]["transformer"] | stage.transformer)["joint_attention_dim"]
    sharpened = {"sharpened": SHARPENED} if stage.foresight and width >= NUMBERS else {}
    asked = Conditioning(**options["conditioning"])
    parts = mini_editor(model, asked, connector=sharpened | stage.connector, transformer=channels | stage.transformer)
    parts["vae"] = vae
    if primer := _primer(stage, run):
        take_primer(parts, primer)
    return Start(parts, model, processor, found["vision_language"], options)


def _primer(stage: EditStage, run: Path) -> str | None:
    """The transformer that the stage names, else the run's, if it has one."""
    own = run / "edit_primer" / "model"
    return stage.primer or (str(own) if own.is_dir() else None)


def take_primer(parts: dict, primer: str) -> None:
    """The transformer that has learnt to draw, and a connector which tells it nothing but what the primer did."""
    parts["transformer"] = like(parts["transformer"], primer)
    with torch.no_grad():
        parts["transformer"].context_embedder.weight[:, NUMBERS:] = 0
        parts["connector"].pooled_projection.weight.zero_()


@torch.no_grad()
def widened(connector: EditConnector, in_channels: int) -> EditConnector:
    """The connector for hidden states with further channels, of which it knows nothing yet; itself where there are
    none.

    Raises:
        RecipeError: they have fewer than it was made for.
    """
    had = connector.config.in_channels
    if in_channels == had:
        return connector
    if in_channels < had:
        raise RecipeError(f"the stage's conditioning makes {in_channels} channels, the editor's connector reads {had}; "
                          f"leave out of `conditioning` what the editor's own does not say.")  # fmt: skip
    with torch.device("meta"):
        wider = EditConnector.from_config(connector.config, in_channels=in_channels)
    state = connector.state_dict()
    for name, weight in wider.state_dict().items():
        if weight.shape != state[name].shape:
            state[name] = functional.pad(state[name], (0, in_channels - had))
    wider.load_state_dict(state, assign=True)
    return wider


def like(transformer: FluxTransformer2DModel, saved: str) -> FluxTransformer2DModel:
    """The saved transformer, which must have the sizes of the fresh one. Raises `RecipeError` where it does not."""
    found = FluxTransformer2DModel.from_pretrained(saved)
    for name, wanted in transformer.config.items():
        has = found.config.get(name)
        if not name.startswith("_") and (tuple(has) if isinstance(has, list) else has) != (
            tuple(wanted) if isinstance(wanted, list) else wanted
        ):
            raise RecipeError(f"the transformer of {saved} has {name} {has}, the stage wants {wanted}; give it the "
                              f"`transformer` and `layout` of the stage that made it.")  # fmt: skip
    return found


def _view_side(processor: ProcessorMixin) -> int:
    """`Conditioning.view_side` for a model of ours."""
    views = processor.image_processor
    return 0 if views.local_crops else isqrt(view_tokens(views.image_size, views.patch_size))


def _options(preset: str, stage: EditStage, **conditioning) -> dict:
    options = copy.deepcopy(PRESETS[preset]["pipeline"])
    options["conditioning"] |= conditioning | stage.conditioning
    options |= stage.layout.model_dump(exclude_none=True)
    options["size_levels"] = [stage.size]
    return options
