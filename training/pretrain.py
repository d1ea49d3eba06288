"""Stage `pretrain`: one stage, nothing frozen, next-token loss on everything that is not a picture.

STEP3-VL-10B (arXiv 2601.09668, section on pre-training) trains encoder, projector and decoder together from the start;
so does this. Fresh weights begin as the papers' do: the projector Kaiming-normal, everything else as its module says.
"""

from pathlib import Path

import torch
from torch import nn

from training.language import train_language
from training.recipe import Recipe
from training.schedule import RecipeError
from training.tokenizer import build_tokenizer
from vlm import Step3VLConfig, Step3VLForConditionalGeneration, Step3VLProcessor
from vlm.answering import load


def start(recipe: Recipe) -> tuple[Step3VLForConditionalGeneration, Step3VLProcessor]:
    """The model and processor that the recipe begins with: a preset with fresh weights, or a checkpoint."""
    if recipe.model.from_pretrained:
        return load(recipe.model.from_pretrained, dtype=torch.float32)
    changes = {"vision_config": recipe.model.vision_config, "text_config": recipe.model.text_config}
    config = Step3VLConfig.preset(recipe.model.preset)
    for part, values in changes.items():
        for key in values:
            if not hasattr(getattr(config, part), key):
                raise RecipeError(f"model.{part}.{key} is not a field of {type(getattr(config, part)).__name__}.")
    config = Step3VLConfig.preset(recipe.model.preset, **changes)
    if recipe.model.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(recipe.model.tokenizer)
    else:
        tokenizer = build_tokenizer(config.text_config.vocab_size)
    torch.manual_seed(recipe.seed)
    model = Step3VLForConditionalGeneration(config)
    nn.init.kaiming_normal_(model.model.multi_modal_projector.weight, mode="fan_in")
    return model, Step3VLProcessor.for_config(config, tokenizer)


def pretrain(recipe: Recipe, out: Path, **options) -> Path:
    """Runs the stage in `out` (resuming what is there) and returns the folder of the trained model."""
    model, processor = start(recipe)
    return train_language("pretrain", recipe, model, processor, out, loss_on="all", **options)
