"""Bar and line charts with a few labelled values: read one, find the largest, add, subtract."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training.world.rendering import SIDE, Nuisance, canvas, finish, font, tone
from training.world.sample import Question

LABELS = "ABCDEF"
# Withheld from training: these values over these labels.
HELD_OUT_VALUES = frozenset((label, (i * 3 + 4) % 11) for i, label in enumerate(LABELS))
BARS = {"easy": (2, 4), "train": (3, 5), "test": (3, 5), "held_out": (3, 5), "hard": (6, 6)}


@dataclass(frozen=True)
class Chart:
    """`values[i]` over label i; the axis runs from 0 to `top`."""

    kind: str  # bar | line
    values: tuple[int, ...]
    top: int

    @property
    def pairs(self) -> list[tuple[str, int]]:
        return list(zip(LABELS, self.values, strict=False))

    def transcription(self) -> str:
        return " ".join(self.entries())

    def entries(self) -> list[str]:
        """The transcription's parts."""
        return [f"{label} {value}" for label, value in self.pairs]


def draw_chart(rng: random.Random, split: str, kind: str) -> Chart:
    top = 20 if split == "hard" else 10
    count = rng.randint(*BARS[split])
    values = []
    for label in LABELS[:count]:
        allowed = [v for v in range(top + 1) if (label, v) not in HELD_OUT_VALUES or split == "hard"]
        values.append(rng.choice(allowed))
    if split == "held_out":
        at = rng.randrange(count)
        values[at] = next(v for label, v in sorted(HELD_OUT_VALUES) if label == LABELS[at])
    return Chart(kind, tuple(values), top)


def render(chart: Chart, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    colours = ["blue", "red", "green", "orange", "purple", "pink", "brown"]
    rng.shuffle(colours)
    ink = (40, 40, 45)
    tones = [tone(rng, colours[0])] * len(chart.values) if rng.random() < 0.6 else [
        tone(rng, c) for c in colours[: len(chart.values)]]  # fmt: skip
    image, background = canvas(rng, nuisance, [ink, *tones])
    draw = ImageDraw.Draw(image)
    s = nuisance.supersampling
    side = SIDE * s
    left, bottom = rng.uniform(0.13, 0.17) * side, rng.uniform(0.84, 0.88) * side
    right, top = rng.uniform(0.93, 0.98) * side, rng.uniform(0.06, 0.12) * side
    small = font("DejaVuSans", 11 * s)
    unit = (bottom - top) / chart.top
    grid = rng.random() < 0.75
    step = chart.top // 5
    for tick in range(0, chart.top + 1, step):
        y = bottom - tick * unit
        if grid:
            faint = tuple((3 * b + i) // 4 for b, i in zip(background, ink, strict=True))
            draw.line([(left, y), (right, y)], fill=faint, width=max(1, s // 2))
        draw.text((left - 3 * s, y), str(tick), font=small, fill=ink, anchor="rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=ink, width=s)
    slot = (right - left) / len(chart.values)
    wide = slot * rng.uniform(0.5, 0.8)
    points = []
    for i, (label, value) in enumerate(chart.pairs):
        x = left + (i + 0.5) * slot
        y = bottom - value * unit
        points.append((x, y))
        draw.text((x, bottom + 8 * s), label, font=small, fill=ink, anchor="mm")
        if chart.kind == "bar" and value:
            draw.rectangle([x - wide / 2, y, x + wide / 2, bottom], fill=tones[i],
                           outline=ink if nuisance.outline else None)  # fmt: skip
    if chart.kind == "line":
        draw.line(points, fill=tones[0], width=2 * s, joint="curve")
        for x, y in points:
            draw.ellipse([x - 2.5 * s, y - 2.5 * s, x + 2.5 * s, y + 2.5 * s], fill=tones[0])
    return finish(rng, image, nuisance)


def _ask(chart: Chart, rng: random.Random) -> Question:
    pairs = chart.pairs
    rare = [p for p in pairs if p in HELD_OUT_VALUES]
    a = rng.choice(rare or pairs)
    b = rng.choice([p for p in pairs if p is not a])
    kind = rng.choice(("read", "most", "least", "highest", "sum", "difference", "total"))
    noun = "bar" if chart.kind == "bar" else "point"
    numeric = {"kind": "numeric"}
    if kind == "read":
        prompt = rng.choice((f"What is the value of {a[0]}?", f"How high is {a[0]}?", f"Read the {noun} {a[0]}."))
        return Question(prompt, "", f"{a[0]} is {a[1]}", str(a[1]), numeric | {"truth": a[1]})
    if kind in ("most", "least"):
        best = (max if kind == "most" else min)(v for _, v in pairs)
        winners = [label for label, v in pairs if v == best]
        if len(winners) > 1:
            kind = "highest"
        else:
            word = ("highest", "largest") if kind == "most" else ("lowest", "smallest")
            prompt = f"Which {noun} is the {rng.choice(word)}?"
            steps = _running(pairs, largest=kind == "most")
            return Question(prompt, steps, f"{winners[0]} is {best}", winners[0],
                            {"kind": "exact", "truth": [winners[0]]})  # fmt: skip
    if kind == "highest":
        best = max(v for _, v in pairs)
        prompt = rng.choice(("What is the largest value?", "What is the maximum?"))
        label = next(label for label, v in pairs if v == best)
        return Question(prompt, _running(pairs), f"{label} is {best}", str(best), numeric | {"truth": best})
    if kind == "total":
        total, lines = 0, []
        for _, value in pairs:
            lines.append(f"{total} + {value} = {total + value}")
            total += value
        prompt = rng.choice(("What is the sum of all values?", f"What do all {noun}s add up to?"))
        return Question(prompt, "\n".join(lines), chart.transcription(), str(total), numeric | {"truth": total})
    if kind == "sum":
        value = a[1] + b[1]
        prompt = rng.choice((f"What is {a[0]} plus {b[0]}?", f"What is the sum of {a[0]} and {b[0]}?"))
        return Question(prompt, f"{a[1]} + {b[1]} = {value}", f"{a[0]} is {a[1]}, {b[0]} is {b[1]}", str(value),
                        numeric | {"truth": value})  # fmt: skip
    high, low = max(a[1], b[1]), min(a[1], b[1])
    prompt = rng.choice((f"What is the difference between {a[0]} and {b[0]}?", f"How far apart are {a[0]} and {b[0]}?"))
    return Question(prompt, f"{high} - {low} = {high - low}", f"{a[0]} is {a[1]}, {b[0]} is {b[1]}", str(high - low),
                    numeric | {"truth": high - low})  # fmt: skip


def _running(pairs: list[tuple[str, int]], *, largest: bool = True) -> str:
    """The best so far after each value."""
    best, words = pairs[0], []
    for pair in pairs:
        if (pair[1] > best[1]) == largest and pair[1] != best[1]:
            best = pair
        words.append(f"{best[0]} {best[1]}")
    return ", ".join(words)


def bar_chart(chart: Chart, rng: random.Random) -> Question:
    return _ask(chart, rng)


def line_chart(chart: Chart, rng: random.Random) -> Question:
    return _ask(chart, rng)


FAMILIES = {"bar_chart": bar_chart, "line_chart": line_chart}
