"""Edits painted with thought, for the report: what planning, several candidates and inspections are worth and cost.

One edit at a time, as the command line and the server do it; the plain report paints many at once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from PIL import Image

from edit import EditPipeline
from edit.thinking import judge_by, own_model, think_and_edit
from training.world.edits import Edit


@dataclass(frozen=True)
class Thinking:
    """How edits are thought about: see `edit.thinking.think_and_edit`, whose `seeds` are the candidates here."""

    plan: bool = False
    candidates: int = 1
    reflections: int = 0

    @property
    def asked(self) -> bool:
        return self != Thinking()


def paint_with_thought(
    pipeline: EditPipeline, edits: Sequence[Edit], thinking: Thinking, steps: int | None, guidance: float | None
) -> tuple[list[Image.Image], list[dict]]:
    """The pictures that stand in the end, and for each `{plan, plan_right, painted, any, verdicts, seconds}`.

    `painted` counts pictures, `any` says whether one of them was a success: what a judge without fault would reach.
    """
    images, thoughts = [], []
    ask = own_model(pipeline)
    for edit in edits:
        painted: list[Image.Image] = []

        def judge(before, instruction, candidates, painted=painted):
            painted += candidates
            return judge_by(ask)(before, instruction, candidates)

        started = time.perf_counter()
        thought = think_and_edit(
            pipeline,
            edit.before,
            edit.instruction,
            planning=thinking.plan,
            reflections=thinking.reflections,
            seeds=thinking.candidates,
            seed=edit.seed,
            ask=ask,
            judge=judge if thinking.candidates > 1 else None,
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
        seconds = time.perf_counter() - started
        painted = painted or [attempt.image for attempt in thought.attempts]
        images.append(thought.image)
        thoughts.append({
            "plan": thought.plan,
            "plan_right": thought.plan == "; ".join(edit.steps),
            "painted": len(painted),
            "any": any(edit.verifier(picture).success for picture in painted),
            "verdicts": [attempt.verdict.decision for attempt in thought.attempts if attempt.verdict],
            "seconds": round(seconds, 3),
        })  # fmt: skip
    return images, thoughts


def thinking_figures(thinking: Thinking, thoughts: Sequence[dict]) -> dict:
    """What was asked for, and over all edits what it cost and came to."""
    figures = {
        "plan": thinking.plan,
        "candidates": thinking.candidates,
        "reflections": thinking.reflections,
        "seconds_per_edit": round(mean(t["seconds"] for t in thoughts), 3),
        "painted_per_edit": round(mean(t["painted"] for t in thoughts), 3),
        "any": round(mean(t["any"] for t in thoughts), 4),
    }
    if thinking.plan:
        figures["plans_right"] = round(mean(t["plan_right"] for t in thoughts), 4)
    if thinking.reflections:
        said = [decision for t in thoughts for decision in t["verdicts"]]
        figures["verdicts"] = {decision: said.count(decision) for decision in sorted(set(said))}
    return figures
