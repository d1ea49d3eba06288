"""Recipes: what is trained, on what, for how long. Typed, so that a bad key is a clear error before any work starts."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic's own requirement; typing's lacks what it needs before Python 3.12

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the field, the value and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class World(_Strict):
    """Samples drawn by `training.world`.

    Attributes:
        split: `train`, or its first rung `easy`; the others are for evaluation and refused here.
        families: which families, None for all; of edits where the task is `edit`.
        modality: `picture`, or `text` for the twin without a picture.
        task: `question`, `transcribe`, `locate` or `match`; or `edit`, where an instruction is answered by its plan.
    """

    split: Literal["easy", "train"] = "train"
    families: list[str] | None = None
    modality: Literal["picture", "text"] = "picture"
    task: Literal["question", "transcribe", "locate", "match", "edit"] = "question"

    @model_validator(mode="after")
    def _known_families(self):
        from training.world import FAMILIES
        from training.world.edits import EDIT_FAMILIES

        known = EDIT_FAMILIES if self.task == "edit" else FAMILIES
        unknown = set(self.families or ()) - set(known)
        if unknown:
            raise ValueError(f"no families named {sorted(unknown)}; there are {', '.join(known)}")
        return self


class Source(_Strict):
    """One part of a mixture: the world, or a `datasets` folder or hub id of conversations.

    Attributes:
        weight: its share of the samples, relative to the other parts.
        dataset: a folder written by `datasets.save_to_disk`, a folder of parquet or JSON files, or a hub id; its rows
            have `messages` (or `conversation`) in the ecosystem's shape and, with pictures, `images`.
        split: which split of `dataset`.
    """

    weight: float = Field(gt=0)
    world: World | None = None
    dataset: str | None = None
    split: str = "train"

    @model_validator(mode="after")
    def _one_kind(self):
        if (self.world is None) == (self.dataset is None):
            raise ValueError("a mixture's part needs exactly one of `world` and `dataset`")
        return self


class Phase(_Strict):
    """`steps` optimizer steps on one mixture."""

    steps: int = Field(gt=0)
    mixture: list[Source] = Field(min_length=1)


class Optimizer(_Strict):
    """AdamW, or Muon for the matrices with AdamW for the rest.

    Attributes:
        learning_rate: AdamW's peak.
        matrix_learning_rate: Muon's peak; used with `name: muon` alone.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    matrix_learning_rate: float = Field(0.02, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)


class Schedule(_Strict):
    """What every stage of training says of its optimisation.

    Attributes:
        batch_size: samples an optimizer step, over all processes.
        gradient_accumulation_steps: into how many parts a process splits its share of the batch.
        warmup_steps: of linear rise; then a cosine down to `final_learning_rate` times the peak.
        minutes: the stage ends by the clock: after half of them the schedule is at half of `steps`, however many were
            done. None for all steps, however long they take.
        precision: `auto` takes bfloat16 where this machine multiplies faster in it, else float32.
        attention: `efficient` leaves PyTorch's cuDNN and flash kernels out: on an H100 with PyTorch 2.11 the backward
            pass of cuDNN's failed, of mini's 144 tokens ("mha_graph.execute"). `auto` takes what PyTorch does.
        checkpoint_minutes: time between two checkpoints; one is also written at the end.
    """

    batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    optimizer: Optimizer = Optimizer()
    warmup_steps: int = Field(0, ge=0)
    minutes: float | None = Field(None, gt=0)
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "efficient"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float = Field(5.0, gt=0)

    def part(self, step: int) -> tuple[int, int]:
        """The first step and the end of the part in which `step` is; each has its own warm-up and cosine."""
        return 0, self.steps


class Stage(Schedule):
    """A stage of the vision-language model: mixtures in turn, next-token loss.

    Attributes:
        row_length: tokens of a packed row; a longer sample makes its own row longer, up to `max_length`.
        max_length: samples with more tokens are an error.
        loss_on: `all` tokens that are not a picture's, or the `assistant`'s; by default what the stage is about.
    """

    phases: list[Phase] = Field(min_length=1)
    row_length: int = Field(256, gt=0)
    max_length: int = Field(2048, gt=0)
    loss_on: Literal["all", "assistant"] | None = None

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @model_validator(mode="after")
    def _phases_count_steps(self):
        if self.minutes and len(self.phases) > 1:
            raise ValueError("phases are counted in steps; give `minutes` to a stage of one phase")
        return self


def _check_edit_families(families: list[str] | None) -> None:
    from training.world.edits import EDIT_FAMILIES

    if unknown := sorted(set(families or ()) - set(EDIT_FAMILIES)):
        raise ValueError(f"no edit families named {unknown}; there are {', '.join(EDIT_FAMILIES)}")


def _check_live(stage: "VaeStage | PrimerStage | EditStage") -> None:
    if 0 < stage.live < stage.batch_size:
        raise ValueError(f"live is {stage.live} and batch_size {stage.batch_size}; hold at least what a step takes")


class VaeStage(Schedule):
    """The editor's autoencoder.

    Attributes:
        vae: values of the preset `mini` that are replaced, arguments of diffusers' `AutoencoderKL`.
        autoencoder: a saved one to go on from, folder or hub id, instead of fresh weights.
        families: of the edits whose pictures it sees, None for all alike; what is named twice comes twice as often.
        size: side of the pictures, in pixels.
        crop: side of a random window of each that a step sees; 0 for the whole picture.
        kl_weight: of the divergence from a standard normal, a latent value, beside the absolute error, a pixel value.
        squared_weight: of the squared error beside it, of pixels in [-1, 1].
        other_pictures: share of the world's pictures that no edit is about (charts, clocks, mazes, ...).
        live: how many of the newest pictures are held on the device, for steps that choose among them while more are
            drawn, see `training.live`; 0 draws every step's own.
    """

    steps: int = Field(gt=0)
    vae: dict = {}
    autoencoder: str | None = None
    families: list[str] | None = None
    size: int = Field(128, gt=0)
    crop: int = Field(0, ge=0)
    kl_weight: float = Field(1e-4, ge=0)
    squared_weight: float = Field(0.0, ge=0)
    live: int = Field(0, ge=0)
    other_pictures: float = Field(0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _possible(self):
        _check_edit_families(self.families)
        if self.autoencoder and self.vae:
            raise ValueError("both `autoencoder` and `vae` are given; a saved autoencoder has its own sizes")
        if self.crop > self.size:
            raise ValueError(f"crop is {self.crop} and size {self.size}; a window cannot exceed its picture")
        _check_live(self)
        if self.live and self.crop:
            raise ValueError("`live` steps see whole pictures; leave out `crop`")
        return self


class Lora(_Strict):
    """Low-rank adapters of the transformer instead of all weights (arXiv 2106.09685).

    Attributes:
        targets: the ends of the names of the layers that get one: by default attention and MLP of both kinds of block,
            and what leads out of them.
        fp8: the blocks' own weights are kept in 8 bits and computed with in bfloat16, layer by layer; takes
            `precision: bf16`, and `gradient_checkpointing: true`, without which the gradients keep them in bfloat16.
    """

    rank: int = Field(16, gt=0)
    alpha: float = Field(16, gt=0)
    targets: list[str] = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2"]
    fp8: bool = False


class Layout(_Strict):
    """How a fresh editor's latents become tokens, where it is not the preset's way.

    The transformer's channels follow from it and the autoencoder, see `edit.latents.token_channels`.

    Attributes:
        packing: latents a side of a token.
        reference_channels: whether the reference stands in a token's channels too, see `edit.flow.velocity`.
    """

    packing: int | None = Field(None, gt=0)
    reference_channels: bool | None = None


class PrimerStage(Schedule):
    """The transformer of a fresh editor, before any model that sees has a part in it.

    It learns to draw from what becomes of each place, see `training.edit_places`, on full pages of the world most of
    which changes: many lessons in drawing for each one in reading.

    Attributes:
        primer: a saved one to go on from, a folder, instead of fresh weights.
        vae: what it paints with; None takes the run's `vae`.
        transformer: values of the preset that are replaced.
        pairs, easy: how many, and the share of the world's easiest split.
        things, changes: least and most of a page.
        text: share of the pages that are a line of text instead.
        live: see `EditStage`.
        size: side of the pictures, in pixels.
        changed_weight, ema_decay, layout: see `EditStage`.
    """

    steps: int = Field(gt=0)
    primer: str | None = None
    vae: str | None = None
    transformer: dict = {}
    layout: Layout = Layout()
    pairs: int = Field(16384, gt=0)
    easy: float = Field(0.3, ge=0, le=1)
    things: tuple[int, int] = (4, 14)
    changes: tuple[int, int] = (6, 16)
    text: float = Field(0.0, ge=0, le=1)
    live: int = Field(0, ge=0)
    size: int = Field(128, gt=0)
    changed_weight: float = Field(0.0, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)

    @model_validator(mode="after")
    def _possible(self):
        _check_live(self)
        for name, least, most in (("things", 1, 16), ("changes", 2, 32)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is {[low, high]}; give least and most, {least} to {most}")
        return self


class EditStage(Schedule):
    """The editor's connector and transformer, by flow matching.

    Attributes:
        editor: a saved editor to go on from, folder or hub id; None starts fresh weights of the `mini` preset.
        released: or released Step1X-Edit weights to go on from, a `.safetensors` file or a folder of them.
        primer: the transformer that a fresh editor begins with, a folder; None takes the run's `edit_primer`, if there
            is one, or fresh weights. With `editor` it takes the place of that one's, the run's own too unless the
            editor is of the same run.
        vision_language, vae: what a fresh editor is built on; None takes the run's `sft` and `vae`. With `released`
            the model those weights were trained with (a folder or hub id) and the FLUX VAE's `.safetensors` file.
        connector, transformer, conditioning: values of the preset that are replaced.
        layout: of a fresh editor's tokens; weights to go on from have their own.
        edits: a folder in the released metadata form, or a hub id; None draws the world's.
        pairs, families, easy: of the world: how many, which families (None for all), the share of its easiest split.
        live: how many of the newest pairs are held on the device, for steps that choose among them while more are
            drawn, see `training.live`; 0 makes a cache of `pairs` on disk first.
        size: pictures have about size x size pixels, their aspect kept.
        dropout: share of the samples that learn from an empty instruction, for guidance.
        planned: share of the samples that are told the plan's short form, as `plan` writes it; see
            `edit.conditioning.Conditioning.planned`. Where the plan says the place, painting is learnt apart from
            finding.
        dense: share of the world's pairs that have many steps: as many lessons in what words and places come to, where
            one instruction is one. Half of them are two to five orders in sentences, half two to eight in the plan's
            short form alone.
        foresight: weight of a second loss, see `training.edit.Foresight`; 0 for none.
        foresight_steps: the first steps learn that alone, at a third of the time; where all do, the painter stays what
            the primer made it.
        changed_weight: extra weight of latents in which the asked change lies; 0 weighs all alike.
        ema_decay: of the averaged weights that are saved; 0 saves the last ones.
        lora: trains adapters alone, and saves them alone.
        train_vision_language: fine-tunes the model that sees together with the painter; its embeddings are then made
            anew at every step.
    """

    steps: int = Field(gt=0)
    editor: str | None = None
    released: str | None = None
    primer: str | None = None
    vision_language: str | None = None
    vae: str | None = None
    connector: dict = {}
    transformer: dict = {}
    conditioning: dict = {}
    layout: Layout = Layout()
    edits: str | None = None
    pairs: int = Field(20000, gt=0)
    live: int = Field(0, ge=0)
    families: list[str] | None = None
    easy: float = Field(0.3, ge=0, le=1)
    size: int = Field(128, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    planned: float = Field(0.0, ge=0, le=1)
    dense: float = Field(0.0, ge=0, le=1)
    foresight: float = Field(0.0, ge=0)
    foresight_steps: int = Field(0, ge=0)
    changed_weight: float = Field(0.0, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    lora: Lora | None = None
    train_vision_language: bool = False

    @model_validator(mode="after")
    def _possible(self):
        _check_edit_families(self.families)
        _check_live(self)
        if self.live and (self.edits or self.train_vision_language):
            raise ValueError("`live` pairs are the world's, read once by a frozen model; leave it out with `edits` and "
                             "`train_vision_language`")  # fmt: skip
        if self.minutes and 0 < self.foresight_steps < self.steps:
            raise ValueError("with `minutes` either all steps learn the foresight alone or none; give "
                             "`foresight_steps` as many as `steps`, or leave it out")  # fmt: skip
        if (self.planned or self.dense or self.foresight) and self.edits:
            raise ValueError("`planned`, `dense` and `foresight` need the world's plans and square pictures; `edits` "
                             "of a folder or hub id have none")  # fmt: skip
        if self.foresight_steps and not self.foresight:
            raise ValueError("`foresight_steps` learn the foresight alone; give `foresight` a weight")
        if self.layout != Layout() and (self.editor or self.released):
            raise ValueError("`layout` is that of the weights to go on from; give one of a fresh editor alone")
        if self.primer and self.released:
            raise ValueError("`primer` is a transformer of the world's; `released` weights have their own")
        if self.editor and self.released:
            raise ValueError("both `editor` and `released` are given; a stage goes on from one of them")
        if self.released and not (self.vision_language and self.vae):
            raise ValueError("`released` weights need the model and the VAE they were trained with; name both with "
                             "`vision_language` and `vae`")  # fmt: skip
        if self.lora and not (self.editor or self.released):
            raise ValueError("`lora` adapts a trained editor; name it with `editor` or `released`")
        if self.lora and self.train_vision_language:
            raise ValueError("`lora` trains adapters of the painter alone; leave out `train_vision_language`")
        if self.lora and self.lora.fp8 and not (self.gradient_checkpointing and self.precision == "bf16"):
            raise ValueError("`lora.fp8` computes in bfloat16 and must not keep its weights in it for the gradients; "
                             "add `precision: bf16` and `gradient_checkpointing: true`")  # fmt: skip
        if self.foresight_steps > self.steps:
            raise ValueError(f"of {self.steps} steps {self.foresight_steps} are to learn the foresight alone; give at "
                             "most as many")  # fmt: skip
        return self

    def part(self, step: int) -> tuple[int, int]:
        alone = step < self.foresight_steps
        return (0, self.foresight_steps) if alone else (self.foresight_steps, self.steps)


class Model(_Strict):
    """Where the weights start: a preset with fresh weights, or a checkpoint (directory or hub id).

    Attributes:
        tokenizer: of a preset, a folder or hub id; by default the world's own, `training.tokenizer`.
        text_config, vision_config: fields of a preset that are replaced.
    """

    preset: str | None = None
    from_pretrained: str | None = None
    tokenizer: str | None = None
    text_config: dict = {}
    vision_config: dict = {}

    @model_validator(mode="after")
    def _one_start(self):
        if (self.preset is None) == (self.from_pretrained is None):
            raise ValueError("`model` needs exactly one of `preset` and `from_pretrained`")
        return self


class Stages(TypedDict, total=False):
    """What a recipe may train, in the order in which `all` does."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    pretrain: Stage
    sft: Stage
    vae: VaeStage
    edit_primer: PrimerStage
    edit: EditStage
    edit_joint: EditStage


class Recipe(_Strict):
    """Everything a run needs.

    Attributes:
        model: what `pretrain` starts from, or `sft` where there is no `pretrain`; other stages do without.
    """

    name: str
    seed: int = 0
    model: Model | None = None
    fsdp: bool = False
    stages: Stages

    @model_validator(mode="after")
    def _has_a_start(self):
        if "pretrain" in self.stages and self.model is None:
            raise ValueError("stage `pretrain` needs `model`, a preset or a checkpoint to start from")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe shipped with the project by name, or any YAML file; raises `RecipeError`."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise RecipeError(f"no recipe {name_or_path!r}: give a YAML file or one of {shipped}.")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()
        )
        raise RecipeError(f"recipe {path}: {lines}") from None
