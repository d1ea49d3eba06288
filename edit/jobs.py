"""What a call of the pipeline is made of: pictures with their seeds, in batches of one size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from edit.inputs import EditError, Judge


@dataclass
class Job:
    """One picture on its way through the pipeline.

    Attributes:
        size: (width, height) in which it is edited.
        embedding, negative: of instruction and negative instruction, (tokens, width); no negative without guidance.
        noise: what each seed starts from, packed (1, tokens, channels).
    """

    picture: Image.Image
    size: tuple[int, int]
    embedding: torch.Tensor
    negative: torch.Tensor | None
    noise: list[torch.Tensor]


def batches(jobs: list[Job], batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """(job, seed) pairs, one size in a batch, the order of the jobs kept within a size."""
    for size in dict.fromkeys(job.size for job in jobs):
        pairs = [(index, seed) for index, job in enumerate(jobs) if job.size == size for seed in range(len(job.noise))]
        yield from (pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size))


def best(
    judge: Judge, pictures: list[Image.Image], prompts: list[str], images: list[Image.Image]
) -> tuple[list[Image.Image], list[list[float]]]:
    """The image with each picture's highest score, and all scores. Raises EditError for a judge who does not count."""
    each = len(images) // len(pictures)
    kept, scores = [], []
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        candidates = images[index * each : (index + 1) * each]
        own = [float(score) for score in judge(picture, prompt, candidates)]
        if len(own) != each:
            raise EditError(f"the judge gave {len(own)} scores for {each} candidates; it must give one each.")
        kept.append(candidates[int(np.argmax(own))])
        scores.append(own)
    return kept, scores
