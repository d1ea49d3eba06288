"""What `pretrain` and `sft` teach: the next token of packed conversations."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn import functional

from training.data import Steps
from training.loop import made_ahead, train
from training.recipe import Recipe, Stage


class LanguageTask:
    """The next token, over `training.data.Steps`.

    Args:
        loss_on: `all` or `assistant`, see `training.data.encode_conversation`.
        checkpointing: recompute activations; off where FSDP does it.
    """

    def __init__(self, stage: Stage, model, processor, loss_on: str, seed: int, checkpointing: bool = False):
        self.stage, self.model, self.processor, self.loss_on, self.seed = stage, model, processor, loss_on, seed
        if checkpointing:
            model.gradient_checkpointing_enable()
        if stage.compile:
            # Layer by layer and in place: names of weights stay, and one compiled layer serves all of its kind.
            for layer in [*model.model.vision_model.layers, *model.model.language_model.layers]:
                layer.compile(dynamic=True)

    def batches(self, first_step: int, workers: int, rank: int, world_size: int) -> Iterable[list[dict]]:
        data = Steps(self.stage, self.processor, self.loss_on, self.seed, rank, world_size)
        return made_ahead(data, first_step, workers)

    def count(self, batch: dict) -> int:
        return len(batch["targets"])

    def loss(self, model, batch: dict) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key not in ("keep", "targets")}
        logits = model(**inputs, logits_to_keep=batch["keep"], use_cache=False).logits
        return functional.cross_entropy(logits.float(), batch["targets"], reduction="sum")

    def after_step(self, model, step: int) -> None:
        """Nothing to do."""

    def look(self, model, folder: Path) -> None:
        """The curves say it."""

    def write(self, model, state: dict[str, torch.Tensor], folder: Path) -> None:
        model.save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)


def train_language(name: str, recipe: Recipe, model, processor, out: Path, *, loss_on: str, **options) -> Path:
    """Runs the stage `name` of the recipe in `out`; see `training.loop.train` for the options."""
    stage = recipe.stages[name]
    task = LanguageTask(stage, model, processor, stage.loss_on or loss_on, recipe.seed,
                        checkpointing=stage.gradient_checkpointing and not recipe.fsdp)  # fmt: skip
    return train(name, stage, task, out, seed=recipe.seed, fsdp=recipe.fsdp, **options)
