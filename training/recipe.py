"""Recipes: what is trained, on what, for how long. Typed, so that a bad key is a clear error before any work starts."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic's own requirement; typing's lacks what it needs before Python 3.12

from training.edit_stages import EditStage, PrimerStage, VaeStage
from training.schedule import RecipeError, Schedule, Strict

RECIPES = Path(__file__).parent / "recipes"


class World(Strict):
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


class Source(Strict):
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


class Phase(Strict):
    """`steps` optimizer steps on one mixture."""

    steps: int = Field(gt=0)
    mixture: list[Source] = Field(min_length=1)


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


class Model(Strict):
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


class Recipe(Strict):
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
