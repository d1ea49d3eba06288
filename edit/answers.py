"""What a client of the editor is sent: edits made as it asked, encoded, whole or as the events of a stream."""

import base64
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from edit.pipeline import EditPipeline
from edit.requests import EditRequest
from edit.thinking import own_model, think_and_edit

# An event of a stream, as the protocol has it.
Show = Callable[[dict], None]


class Stopped(Exception):
    """Nobody waits for the edit any more."""


@dataclass(frozen=True)
class Edits:
    """What came of a request.

    Attributes:
        data: a result each: `b64_json` and `seed`; `revised_prompt` where there was a plan, `verdicts` where results
            were inspected.
        size: WIDTHxHEIGHT.
        usage: in tokens of the painter, of the picture and of every edit of it, and of the model, of the words.
    """

    data: list[dict]
    size: str
    output_format: str
    usage: dict

    def whole(self) -> dict:
        """The answer's body."""
        return {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": self.output_format,
            "size": self.size,
            "data": self.data,
            "usage": self.usage,
        }

    def completed(self) -> dict:
        """The last event of a stream."""
        event = _event("image_edit.completed", self.output_format, self.size)
        return {**event, **self.data[0], "usage": self.usage}


def _event(kind: str, output_format: str, size: str) -> dict:
    return {
        "type": kind,
        "created_at": int(time.time()),
        "background": "opaque",
        "quality": "auto",
        "output_format": output_format,
        "size": size,
    }


def make(
    pipeline: EditPipeline, asked: EditRequest, picture: Image.Image, stop: threading.Event, show: Show | None = None
) -> Edits:
    """Edits `picture` as `asked`; the work ends after the running step once `stop` is set.

    Args:
        show: is given the partial pictures' events.

    Raises:
        As `think_and_edit`; Stopped.
    """
    size = f"{picture.width}x{picture.height}"
    shown = tokens = 0

    def on_step(running: EditPipeline, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
        nonlocal shown, tokens
        tokens = tensors["denoised"].shape[1]
        if stop.is_set():
            running._interrupt = True
        elif show is not None and _due(step + 1, running.num_timesteps, asked.partial_images) > shown:
            preview = running.preview(tensors["denoised"])[0].resize(picture.size, Image.Resampling.LANCZOS)
            show(
                _event("image_edit.partial_image", asked.output_format, size)
                | {"b64_json": encoded(preview, asked.output_format, asked.quality), "partial_image_index": shown}
            )
            shown += 1
        return {}

    call = {
        "negative_prompt": asked.negative_prompt,
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance,
        "strength": asked.strength,
        "callback_on_step_end": on_step,
        "callback_on_step_end_tensor_inputs": ("denoised",),
    }
    if asked.plan or asked.reflections:
        results, painted = _thought_about(pipeline, asked, picture, stop, call)
    else:
        seeds = range(asked.seed, asked.seed + asked.results)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = pipeline(picture, asked.prompt, generator=draws, num_images_per_prompt=len(draws), **call)
        _go_on(stop)
        results, painted = [(image, {"seed": seed}) for image, seed in zip(made.images, seeds, strict=True)], len(draws)
    data = [
        {"b64_json": encoded(image, asked.output_format, asked.quality), **about} for image, about in results
    ]  # fmt: skip
    told = data[0].get("revised_prompt", asked.prompt)
    words = len(pipeline.processor.tokenizer(told)["input_ids"])
    return Edits(data, size, asked.output_format, _usage(tokens, words, painted))


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped


def _thought_about(
    pipeline: EditPipeline, asked: EditRequest, picture: Image.Image, stop: threading.Event, call: dict
) -> tuple[list[tuple[Image.Image, dict]], int]:
    """Each result with what is told about it, and how many were painted on the way. Raises Stopped."""
    answer = own_model(pipeline)

    def ask(conversation: list[dict]) -> str:
        _go_on(stop)
        return answer(conversation)

    results, painted, seed = [], 0, asked.seed
    for _ in range(asked.results):
        thought = think_and_edit(
            pipeline, picture, asked.prompt, planning=asked.plan, reflections=asked.reflections, seed=seed, ask=ask,
            **call,
        )  # fmt: skip
        _go_on(stop)
        about: dict[str, Any] = {"seed": thought.attempts[-1].seeds[0]}
        if asked.plan:
            about["revised_prompt"] = thought.told
        if asked.reflections:
            verdicts = [attempt.verdict for attempt in thought.attempts]
            about["verdicts"] = [{"decision": one.decision, "words": one.words} for one in verdicts]
        results.append((thought.image, about))
        painted += len(thought.attempts)
        # Past every seed that another attempt would have had.
        seed += max(1, asked.reflections)
    return results, painted


def _usage(tokens: int, words: int, painted: int) -> dict:
    return {
        "input_tokens": tokens + words,
        "input_tokens_details": {"image_tokens": tokens, "text_tokens": words},
        "output_tokens": painted * tokens,
        "output_tokens_details": {"image_tokens": painted * tokens, "text_tokens": 0},
        "total_tokens": tokens + words + painted * tokens,
    }


def _due(done: int, steps: int, wanted: int) -> int:
    """Of `wanted` pictures spread evenly over the steps before the last, how many are due after `done` of them."""
    return min(done, steps - 1) * (wanted + 1) // steps


def encoded(image: Image.Image, output_format: str, quality: int) -> str:
    """The picture as base64; `quality`, 0 to 100, is JPEG's and WebP's."""
    buffer = io.BytesIO()
    image.save(buffer, output_format.upper(), **({} if output_format == "png" else {"quality": quality}))
    return base64.b64encode(buffer.getvalue()).decode()
