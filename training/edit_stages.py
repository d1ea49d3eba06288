"""What the stages of the editor say in a recipe: the autoencoder, the primer, and connector and transformer."""

from pydantic import Field, model_validator

from training.schedule import Schedule, Strict


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


class Lora(Strict):
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


class Layout(Strict):
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
