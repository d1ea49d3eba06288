"""Stage `sft`: supervised fine-tuning on two mixtures in turn, loss on what the assistant says.

STEP3-VL-10B (arXiv 2601.09668): the first mixture has nine parts text to one multimodal, the second is even; the mini
recipe keeps the order (text-heavy, then pictures) at its own scale. A mixture is a phase of the recipe, so any number
of them runs in turn under one learning-rate schedule.
"""

from pathlib import Path

import torch

from training.language import train_language
from training.recipe import Recipe
from vlm.answering import load


def sft(recipe: Recipe, start_from: str, out: Path, **options) -> Path:
    """Fine-tunes the model at `start_from` (directory or hub id) in `out`; returns the folder of the trained model."""
    model, processor = load(start_from, dtype=torch.float32)
    return train_language("sft", recipe, model, processor, out, loss_on="assistant", **options)
