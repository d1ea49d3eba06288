"""Analogue clocks: two hands to read."""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training.world.rendering import SIDE, Nuisance, canvas, finish, font, tone
from training.world.sample import Question


@dataclass(frozen=True)
class Clock:
    hour: int  # 1 to 12
    minute: int  # 0 to 59

    @property
    def long_hand(self) -> int:
        """The numeral the minute hand points to or has just passed, 1 to 12."""
        return (self.minute // 5 - 1) % 12 + 1

    def transcription(self) -> str:
        return " ".join(self.entries())

    def entries(self) -> list[str]:
        """The transcription's parts."""
        past = f" and {self.minute % 5}" if self.minute % 5 else ""
        return [f"short hand {self.hour}", f"long hand {self.long_hand}{past}"]


def held_out(hour: int, minute: int) -> bool:
    """Withheld from training: one time in nine, every hour and every numeral among them."""
    return (hour * 5 + minute // 5) % 9 == 4


def draw_clock(rng: random.Random, split: str) -> Clock:
    while True:
        minute = rng.randrange(60) if split == "hard" else 5 * rng.randrange(12)
        clock = Clock(rng.randint(1, 12), minute)
        if split == "hard" or held_out(clock.hour, clock.minute) == (split == "held_out"):
            return clock


def render(clock: Clock, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    rim = tone(rng, rng.choice(("black", "blue", "brown", "red", "green", "purple")))
    image, _ = canvas(rng, nuisance, [rim])
    draw = ImageDraw.Draw(image)
    s = nuisance.supersampling
    radius = rng.uniform(0.38, 0.47) * SIDE * s
    slack = SIDE * s / 2 - radius
    cx, cy = (SIDE * s / 2 + rng.uniform(-slack, slack) * 0.8 for _ in range(2))
    face = (255, 255, 255) if rng.random() < 0.7 else (250, 245, 225)
    draw.ellipse([cx - radius, cy - radius, cx + radius, cy + radius], fill=face, outline=rim, width=2 * s)

    def at(turn: float, reach: float) -> tuple[float, float]:
        angle = 2 * math.pi * turn
        return cx + math.sin(angle) * reach * radius, cy - math.cos(angle) * reach * radius

    numerals = rng.random() < 0.7
    small = font("DejaVuSans", 10 * s)
    for hour in range(1, 13):
        if numerals:
            draw.text(at(hour / 12, 0.8), str(hour), font=small, fill=(40, 40, 45), anchor="mm")
        draw.line([at(hour / 12, 0.9 if numerals else 0.84), at(hour / 12, 0.97)], fill=(40, 40, 45), width=s)
    hands = (30, 30, 35) if rng.random() < 0.6 else rim
    draw.line([(cx, cy), at((clock.hour % 12 + clock.minute / 60) / 12, 0.42)], fill=hands, width=4 * s)
    draw.line([(cx, cy), at(clock.minute / 60, 0.68)], fill=hands, width=2 * s)
    draw.ellipse([cx - 3 * s, cy - 3 * s, cx + 3 * s, cy + 3 * s], fill=hands)
    return finish(rng, image, nuisance)


def clock(scene: Clock, rng: random.Random) -> Question:
    rest = scene.minute % 5
    sum_of_five = scene.long_hand % 12 * 5
    steps = f"{scene.long_hand} is {sum_of_five} minutes" + (
        f", {sum_of_five} + {rest} = {scene.minute}" if rest else ""
    )
    evidence = f"The short hand is at {scene.hour}, the long hand at {scene.long_hand}"
    kind = rng.choices(("time", "hour", "minute"), (0.7, 0.15, 0.15))[0]
    if kind == "hour":
        prompt = rng.choice(("Which hour does the clock show?", "What hour is it?"))
        return Question(prompt, "", evidence, str(scene.hour), {"kind": "numeric", "truth": scene.hour})
    if kind == "minute":
        prompt = rng.choice(("How many minutes past the hour is it?", "What minute does the clock show?"))
        return Question(prompt, steps, evidence, str(scene.minute), {"kind": "numeric", "truth": scene.minute})
    prompt = rng.choice(("What time is it?", "Read the clock.", "What time does the clock show?"))
    time = f"{scene.hour}:{scene.minute:02d}"
    return Question(prompt, steps, evidence, time, {"kind": "time", "truth": time})


FAMILIES = {"clock": clock}
