"""What the connector says of each place, judged by itself: whether an edit fails because it was misread, or because it
was badly painted."""

from collections.abc import Sequence

import torch

from edit import EditPipeline
from edit.conditioning import pad
from training.edit_places import INDEX, NUMBERS, PLACES, SPOT_WEIGHT, describe
from training.world.edits import Edit

SPOTS = [INDEX["spot", "across"], INDEX["spot", "down"]]
# In halves of a cell, as spots are told: so far off, its weighted error is that of a yes for a no.
SPOT_TOLERANCE = SPOT_WEIGHT**-0.5


def spells(pipeline: EditPipeline) -> bool:
    """Whether the connector was taught to spell what becomes of each place (`foresight`)."""
    sees_places = pipeline.conditioning.view_side**2 == PLACES
    return bool(pipeline.connector.config.sharpened) and sees_places


@torch.no_grad()
def said_right(
    pipeline: EditPipeline, edits: Sequence[Edit], embeddings: Sequence[torch.Tensor], batch_size: int = 16
) -> list[bool]:
    """Whether of each edit all numbers of all places are right: every yes and no, and the spots within
    `SPOT_TOLERANCE`.

    Args:
        embeddings: (tokens, width) an edit, from `EditPipeline.encode_prompt`.

    Raises:
        ValueError: the connector `spells` nothing.
    """
    if not spells(pipeline):
        raise ValueError("the connector was not taught to spell what becomes of each place; train it with `foresight`.")
    right = []
    for first in range(0, len(edits), batch_size):
        own = edits[first : first + batch_size]
        hidden, mask = pad(embeddings[first : first + batch_size], pipeline.conditioning.padded_tokens)
        text, _ = pipeline.connector(hidden, torch.ones(len(own), device=hidden.device, dtype=hidden.dtype), mask)
        said = text[:, 1 : 1 + PLACES, :NUMBERS].float().cpu()
        right += [is_right(places, torch.from_numpy(describe(*e.pages))) for places, e in zip(said, own, strict=True)]
    return right


def is_right(said: torch.Tensor, truth: torch.Tensor) -> bool:
    """Of one edit: what the connector says, sharpened or not, against what `describe` tells; both (places, numbers)."""
    near = (said - truth).abs()[:, SPOTS].max() <= SPOT_TOLERANCE
    yes, wanted = said > 0.5, truth > 0.5
    yes[:, SPOTS] = wanted[:, SPOTS] = False
    return bool(near) and torch.equal(yes, wanted)
