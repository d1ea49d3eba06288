"""Draws scenes: shapes, backgrounds and nuisance. Pixels come from scenes; answers never come from pixels."""

import io
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.world.scenes import Scene, Thing

SIDE = 128

# Several anchors a colour: the names people use cover more than one tone (CSS, matplotlib, crayons).
TONES = {
    "red": ((220, 40, 40), (255, 0, 0), (214, 39, 40), (190, 20, 45)),
    "orange": ((245, 140, 30), (255, 165, 0), (255, 127, 14)),
    "yellow": ((240, 215, 40), (255, 255, 0), (255, 220, 0)),
    "green": ((50, 165, 70), (0, 128, 0), (44, 160, 44), (60, 200, 60)),
    "blue": ((45, 90, 215), (0, 0, 255), (31, 119, 180), (65, 105, 225)),
    "purple": ((135, 60, 175), (128, 0, 128), (148, 103, 189)),
    "pink": ((245, 130, 180), (255, 192, 203), (255, 105, 180), (227, 119, 194)),
    "brown": ((130, 80, 40), (139, 69, 19), (140, 86, 75)),
    "black": ((25, 25, 25), (0, 0, 0), (40, 40, 45)),
    "gray": ((135, 135, 135), (128, 128, 128), (160, 160, 160)),
}
BACKGROUNDS = (
    (255, 255, 255),
    (255, 255, 255),
    (255, 255, 255),
    (250, 248, 240),
    (235, 242, 250),
    (240, 250, 238),
    (252, 238, 238),
    (225, 225, 230),
)
DARK_BACKGROUNDS = ((30, 32, 48), (20, 45, 40), (50, 30, 40))
MIN_CONTRAST = 75  # Euclidean distance in RGB between a shape and what it lies on

# matplotlib ships these with itself, so every machine has the same letters.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold",
         "STIXGeneral", "STIXGeneralBol")  # fmt: skip


@dataclass(frozen=True)
class Nuisance:
    """What a picture shows besides its scene.

    Attributes:
        noise: standard deviation of the pixel noise, in grey levels of 255.
        supersampling: 1 leaves hard edges, 3 antialiases.
        outline: shapes get a darker edge.
        gradient: how far the background's brightness drifts across the picture, in grey levels.
        blur: radius of a Gaussian blur, in pixels of the final size.
        quality: of a JPEG the picture has been through, or None.
    """

    noise: float = 0.0
    supersampling: int = 3
    outline: bool = False
    gradient: float = 0.0
    blur: float = 0.0
    quality: int | None = None


def draw_nuisance(rng: random.Random, split: str) -> Nuisance:
    """What goes with the split: nothing for `easy`, the most for `hard`."""
    if split == "easy":
        return Nuisance()
    return Nuisance(
        noise=rng.uniform(8, 22) if split == "hard" else rng.choice((0.0, 0.0, rng.uniform(1, 9))),
        supersampling=rng.choice((1, 3, 3, 3)),
        outline=rng.random() < 0.3,
        gradient=rng.choice((0.0, 0.0, rng.uniform(5, 25))),
        blur=rng.uniform(0.3, 0.9) if rng.random() < 0.2 else 0.0,
        quality=rng.randint(45, 90) if rng.random() < 0.2 else None,
    )


def tone(rng: random.Random, colour: str, jitter: int = 10) -> tuple[int, int, int]:
    """One RGB value for a colour's name."""
    return tuple(min(255, max(0, c + rng.randint(-jitter, jitter))) for c in rng.choice(TONES[colour]))


def canvas(rng: random.Random, nuisance: Nuisance, away_from=()) -> tuple[Image.Image, tuple[int, int, int]]:
    """An empty picture at the working resolution, and its colour, which keeps its contrast to `away_from`."""
    choices = DARK_BACKGROUNDS if rng.random() < 0.12 else BACKGROUNDS
    fitting = [b for b in choices if all(math.dist(b, c) >= MIN_CONTRAST for c in away_from)]
    background = rng.choice(fitting or BACKGROUNDS[:1])
    side = SIDE * nuisance.supersampling
    return Image.new("RGB", (side, side), background), background


def finish(rng: random.Random, image: Image.Image, nuisance: Nuisance) -> Image.Image:
    """Down to the final size, then blur, gradient, noise and compression."""
    return finish_alike(rng, [image], nuisance)[0]


def finish_alike(
    rng: random.Random, images: list[Image.Image], nuisance: Nuisance, side: int = SIDE
) -> list[Image.Image]:
    """`finish` for several pictures that share one nuisance: where the pictures are equal, the results are too."""
    images = [i if i.width == side else i.resize((side, side), Image.Resampling.BOX) for i in images]
    if nuisance.blur:
        images = [image.filter(ImageFilter.GaussianBlur(nuisance.blur)) for image in images]
    if nuisance.noise or nuisance.gradient:
        images = _shaded(rng, images, nuisance, side)
    if nuisance.quality:
        images = [_compressed(image, nuisance.quality) for image in images]
    return images


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored).convert("RGB")


def _shaded(rng: random.Random, images: list[Image.Image], nuisance: Nuisance, side: int) -> list[Image.Image]:
    noise = np.random.default_rng(rng.getrandbits(64))
    layers = []
    if nuisance.gradient:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
        drift = math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
        layers.append(nuisance.gradient * drift[..., None])
    if nuisance.noise:
        layers.append(noise.normal(0, nuisance.noise, (side, side, 3)).astype(np.float32))
    shaded = []
    for image in images:
        pixels = np.asarray(image, dtype=np.float32)
        for layer in layers:
            pixels = pixels + layer
        shaded.append(Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8)))
    return shaded


def render(scene: Scene, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    """Draws the scene at 128 x 128 pixels, RGB."""
    tones = [tone(rng, thing.colour) for thing in scene.things]
    image, background = canvas(rng, nuisance, tones)
    draw = ImageDraw.Draw(image)
    for thing, colour in zip(scene.things, tones, strict=True):
        if math.dist(colour, background) < MIN_CONTRAST:
            colour = TONES[thing.colour][0]
        draw_thing(draw, thing, colour, nuisance)
    return finish(rng, image, nuisance)


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, colour, nuisance: Nuisance, side: int = SIDE) -> None:
    """Draws on a canvas of `side` times the supersampling; lines grow with the side."""
    stroke = max(1, round(1.2 * nuisance.supersampling * side / SIDE))
    side = side * nuisance.supersampling
    edge = tuple(int(c * 0.55) for c in colour)
    if thing.shape == "ring":
        box = [(thing.x - thing.radius) * side, (thing.y - thing.radius) * side,
               (thing.x + thing.radius) * side, (thing.y + thing.radius) * side]  # fmt: skip
        draw.ellipse(box, outline=colour, width=max(2, round(thing.radius * side * 0.32)))
        return
    points = [(x * side, y * side) for x, y in outline(thing)]
    draw.polygon(points, fill=colour)
    if nuisance.outline:
        draw.line([*points, points[0]], fill=edge, width=stroke)


def outline(thing: Thing) -> list[tuple[float, float]]:
    """The shape's corners in fractions of the side; for the ring, its outer edge."""
    angle = math.radians(thing.rotation)
    cos, sin = math.cos(angle) * thing.radius, math.sin(angle) * thing.radius
    return [(thing.x + px * cos - py * sin, thing.y + px * sin + py * cos) for px, py in _unit_outline(thing.shape)]


def box(thing: Thing) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 in hundredths of the side, 0 to 99."""
    xs, ys = zip(*outline(thing), strict=True)
    return tuple(min(99, max(0, round(v * 100))) for v in (min(xs), min(ys), max(xs), max(ys)))


def _arc(start: float, stop: float, count: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0):
    for i in range(count):
        a = math.radians(start + (stop - start) * i / (count - 1))
        yield x + radius * math.cos(a), y + radius * math.sin(a)


@lru_cache
def _unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners for radius 1, y down."""
    if shape in ("circle", "ring"):
        return tuple(_arc(0, 350, 36))
    if shape == "square":
        s = 0.82
        return ((-s, -s), (s, -s), (s, s), (-s, s))
    if shape == "triangle":
        return tuple(_arc(-90, 150, 3))
    if shape == "diamond":
        return ((0, -1), (0.68, 0), (0, 1), (-0.68, 0))
    if shape == "star":
        radii = (1.0, 0.42)
        return tuple(
            (radii[i % 2] * math.cos(math.radians(36 * i - 90)), radii[i % 2] * math.sin(math.radians(36 * i - 90)))
            for i in range(10)
        )
    if shape == "cross":
        a, b = 0.95, 0.32
        return ((-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b),
                (-b, -b))  # fmt: skip
    if shape == "moon":
        return (*_arc(-60, -300, 24), *_arc(-255, -105, 24, 0.9, 0.72, 0.0))
    # heart: the usual parametric curve, scaled into the unit circle
    curve = []
    for i in range(36):
        t = 2 * math.pi * i / 36
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((x / 17, -y / 17 - 0.05))
    return tuple(curve)


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS` at a height in pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)
