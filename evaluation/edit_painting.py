"""An editor at work on a benchmark's tasks; the folder it paints into is told of in `evaluation.edit_runs`."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from edit import EditPipeline
from edit.conditioning import ConditioningError
from edit.inputs import EditError
from evaluation.edit_benchmark import EditTask
from evaluation.edit_runs import Painting, result_of, source_beside
from vlm.pictures import PictureError, open_picture


def paint(
    pipeline: EditPipeline, tasks: Sequence[EditTask], folder: Path, painting: Painting, batch_size: int,
    on_done: Callable[[EditTask, str], None] = lambda task, error: None,
) -> dict[str, str]:  # fmt: skip
    """Paints what is not there yet.

    Returns:
        Task's name to the reason, of what cannot be painted, a picture that cannot be read for instance.
    """
    left = [task for task in tasks if not result_of(folder, task).is_file()]
    failed = {}
    for start in range(0, len(left), batch_size):
        part = left[start : start + batch_size]
        for task, error in _paint_batch(pipeline, part, folder, painting):
            if error:
                failed[task.name] = error
            on_done(task, error)
    return failed


def _paint_batch(
    pipeline: EditPipeline, tasks: list[EditTask], folder: Path, painting: Painting
) -> Iterator[tuple[EditTask, str]]:
    """(task, "" or why not); where one fails the others are painted one by one."""
    try:
        pictures = [open_picture(task.picture) for task in tasks]
        made = pipeline(
            pictures, [task.instruction for task in tasks], generator=[_draw(task, painting.seed) for task in tasks],
            num_inference_steps=painting.steps, guidance_scale=painting.guidance, batch_size=len(tasks),
        ).images  # fmt: skip
    except (EditError, ConditioningError, PictureError) as error:
        if len(tasks) == 1:
            yield tasks[0], str(error)
        else:
            for task in tasks:
                yield from _paint_batch(pipeline, [task], folder, painting)
        return
    for task, image in zip(tasks, made, strict=True):
        path = result_of(folder, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        source = open_picture(task.picture if task.source is None else task.source)
        _save(source, source_beside(path))
        _save(image, path)
        yield task, ""


def _draw(task: EditTask, seed: int) -> torch.Generator:
    """Of the task alone, in whatever company it is painted."""
    drawn = hashlib.sha256(json.dumps([seed, task.name]).encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(drawn, "big"))


def _save(image: Image.Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, "PNG")
    os.replace(partial, path)
