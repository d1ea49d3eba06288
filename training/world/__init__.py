"""The world: procedurally drawn pictures whose questions are answered from the scene, never from pixels."""

from training.world.families import FAMILIES, TASKS, draw_sample
from training.world.sample import SPLITS, Question, Sample

__all__ = ["FAMILIES", "SPLITS", "TASKS", "Question", "Sample", "draw_sample"]
