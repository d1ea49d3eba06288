"""What every stage of training says of its optimisation; and the error of a recipe that cannot be used."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the field, the value and the remedy."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Optimizer(Strict):
    """AdamW, or Muon for the matrices with AdamW for the rest.

    Attributes:
        learning_rate: AdamW's peak.
        matrix_learning_rate: Muon's peak; used with `name: muon` alone.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    matrix_learning_rate: float = Field(0.02, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)


class Schedule(Strict):
    """What every stage of training says of its optimisation.

    Attributes:
        batch_size: samples an optimizer step, over all processes.
        gradient_accumulation_steps: into how many parts a process splits its share of the batch.
        warmup_steps: of linear rise; then a cosine down to `final_learning_rate` times the peak.
        minutes: the stage ends by the clock: after half of them the schedule is at half of `steps`, however many were
            done. None for all steps, however long they take.
        precision: `auto` takes bfloat16 where this machine multiplies faster in it, else float32.
        attention: `efficient` leaves PyTorch's cuDNN and flash kernels out: on an H100 with PyTorch 2.11 the backward
            pass of cuDNN's failed, of mini's 144 tokens ("mha_graph.execute"). `auto` takes what PyTorch does.
        checkpoint_minutes: time between two checkpoints; one is also written at the end.
    """

    batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    optimizer: Optimizer = Optimizer()
    warmup_steps: int = Field(0, ge=0)
    minutes: float | None = Field(None, gt=0)
    final_learning_rate: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "efficient"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float = Field(5.0, gt=0)

    def part(self, step: int) -> tuple[int, int]:
        """The first step and the end of the part in which `step` is; each has its own warm-up and cosine."""
        return 0, self.steps
