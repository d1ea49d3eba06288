"""Rendered digits and written arithmetic: something to read, and something to work out step by step."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from training.world.rendering import FONTS, SIDE, Nuisance, canvas, finish, font, tone
from training.world.sample import NotAskable, Question
from training.world.scenes import CELLS, GRID, grid_lines, place

INKS = ("black", "black", "blue", "red", "green", "purple", "brown")

# Withheld from training: numbers that hold these digit pairs, and sums whose operands' last digits are such a pair.
HELD_OUT_BIGRAMS = ("47", "83", "16", "59", "20", "72")
DIGITS = {"easy": (1, 3), "train": (2, 5), "test": (2, 5), "held_out": (2, 5), "hard": (6, 8)}
# How many of the pages to transcribe are grids; the first rung has nothing else.
GRID_SHARE = {"easy": 1.0, "train": 0.3, "test": 0.3, "held_out": 0.0, "hard": 0.3}


@dataclass(frozen=True)
class Written:
    """A line of characters, such as `4713` or `37 + 25`, and how it is laid out (one line, or a written column)."""

    text: str
    stacked: bool = False

    def transcription(self) -> str:
        return self.text

    def entries(self) -> list[str]:
        """The transcription's parts: lines, which have no order but their own."""
        return [self.text]


@dataclass(frozen=True)
class DigitGrid:
    """Single digits on the scenes' grid, row by row; None is an empty cell. What is learnt of cells serves digits."""

    digits: tuple[int | None, ...]

    def transcription(self) -> str:
        """As a scene of shapes is transcribed: every cell's place, then its digit or `-`."""
        return grid_lines(self.entries())

    def entries(self) -> list[str]:
        """The transcription's parts."""
        return [f"{place(*cell)} {'-' if d is None else d}" for cell, d in zip(CELLS, self.digits, strict=True)]


def draw_number(rng: random.Random, split: str) -> Written:
    low, high = DIGITS[split]
    while True:
        length = rng.randint(low, high)
        first = rng.randint(0 if length == 1 else 1, 9)
        digits = str(first) + "".join(str(rng.randint(0, 9)) for _ in range(length - 1))
        if split == "held_out":
            at = rng.randrange(length - 1)
            digits = digits[:at] + rng.choice(HELD_OUT_BIGRAMS) + digits[at + 2 :]
        if _held_out(digits) == (split == "held_out") or split == "hard":
            return Written(digits)


def draw_page(rng: random.Random, split: str) -> Written | DigitGrid:
    """Ten digits to read for the price of one picture: a grid of them, or several numbers on two to four lines."""
    if rng.random() < GRID_SHARE[split]:
        return _draw_grid(rng)
    lines = [" ".join(draw_number(rng, split).text for _ in range(rng.randint(1, 2))) for _ in range(rng.randint(2, 4))]
    return Written("\n".join(lines))


def _draw_grid(rng: random.Random) -> DigitGrid:
    while True:
        grid = DigitGrid(tuple(rng.randint(0, 9) if rng.random() < 0.8 else None for _ in CELLS))
        rows = (grid.digits[i : i + GRID] for i in range(0, len(CELLS), GRID))
        # Not side by side either: the held-out pairs are to be new to the eye too.
        if not any(_held_out("".join("-" if d is None else str(d) for d in row)) for row in rows):
            return grid


def _held_out(digits: str) -> bool:
    return any(pair in digits for pair in HELD_OUT_BIGRAMS)


def draw_arithmetic(rng: random.Random, split: str) -> Written:
    while True:
        if split == "hard":
            a, b, op = rng.randint(100, 999), rng.randint(100, 999), rng.choice("+-")
        else:
            op = rng.choice("++--×")
            a, b = (rng.randint(2, 9), rng.randint(2, 9)) if op == "×" else (rng.randint(1, 99), rng.randint(1, 99))
        if op == "-" and a < b:
            a, b = b, a
        if (f"{a % 10}{b % 10}" in HELD_OUT_BIGRAMS) == (split == "held_out") or split == "hard":
            return Written(f"{a} {op} {b}", stacked=op != "×" and rng.random() < 0.35)


def render_grid(grid: DigitGrid, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    colour = tone(rng, rng.choice(INKS))
    image, _ = canvas(rng, nuisance, [colour])
    draw = ImageDraw.Draw(image)
    cell = SIDE * nuisance.supersampling / GRID
    for (row, column), digit in zip(CELLS, grid.digits, strict=True):
        if digit is None:
            continue
        letters = font(rng.choice(FONTS), int(cell * rng.uniform(0.5, 1.05)))
        reach = cell * 0.16
        x, y = ((at - 0.5) * cell + rng.uniform(-reach, reach) for at in (column, row))
        draw.text((x, y), str(digit), font=letters, fill=colour, anchor="mm")
    return finish(rng, image, nuisance)


def render(written: Written | DigitGrid, rng: random.Random, nuisance: Nuisance) -> Image.Image:
    """Draws it at 128 x 128 pixels, RGB."""
    if isinstance(written, DigitGrid):
        return render_grid(written, rng, nuisance)
    colour = tone(rng, rng.choice(INKS))
    image, _ = canvas(rng, nuisance, [colour])
    draw = ImageDraw.Draw(image)
    side, scale = SIDE * nuisance.supersampling, nuisance.supersampling
    name = rng.choice(FONTS)
    lines = [written.text]
    if written.stacked:
        a, op, b = written.text.split()
        width = max(len(a), len(b))
        lines = [" " * 2 + a.rjust(width), f"{op} {b.rjust(width)}"]
        name = rng.choice(("DejaVuSansMono", "DejaVuSansMono-Bold"))  # columns need one width a digit
    if not written.stacked and rng.random() < 0.3 and any(op in written.text for op in "+-×"):
        lines = [written.text + " ="]
    text = "\n".join(lines)
    # As large as fits, then a random share of it.
    size = 46 * scale
    box = draw.multiline_textbbox((0, 0), text, font=font(name, size))
    size = int(size * min(1.0, 0.94 * side / (box[2] - box[0])) * rng.uniform(0.72, 1.0))
    box = draw.multiline_textbbox((0, 0), text, font=font(name, size))
    x = rng.uniform(2 * scale, max(2 * scale, side - (box[2] - box[0]) - 2 * scale)) - box[0]
    y = rng.uniform(2 * scale, max(2 * scale, side - (box[3] - box[1]) - 2 * scale)) - box[1]
    draw.multiline_text((x, y), text, font=font(name, size), fill=colour)
    if written.stacked:
        bottom = y + box[3] + 3 * scale
        draw.line([(x, bottom), (x + box[2], bottom)], fill=colour, width=max(1, scale))
    return finish(rng, image, nuisance)


def number(written: Written, rng: random.Random) -> Question:
    if " " in written.text:
        raise NotAskable
    digits = written.text
    kind = rng.choices(("read", "length", "sum"), (0.7, 0.1, 0.2))[0]
    spelled = ", ".join(digits)
    if kind == "read":
        prompt = rng.choice(("What number is written?", "Read the number.", "Which number do you see?",
                             "What does the picture say?"))  # fmt: skip
        return Question(prompt, "", f"The digits are {spelled}", digits, {"kind": "numeric", "truth": int(digits)})
    if kind == "length":
        prompt = rng.choice(("How many digits are there?", "How many digits does the number have?"))
        steps = ", ".join(f"{d} is {i}" for i, d in enumerate(digits, 1))
        return Question(prompt, steps, f"The digits are {spelled}", str(len(digits)),
                        {"kind": "numeric", "truth": len(digits)})  # fmt: skip
    total, lines = 0, []
    for digit in digits:
        lines.append(f"{total} + {digit} = {total + int(digit)}")
        total += int(digit)
    prompt = rng.choice(("What is the sum of the digits?", "Add up the digits."))
    return Question(prompt, "\n".join(lines), f"The digits are {spelled}", str(total),
                    {"kind": "numeric", "truth": total})  # fmt: skip


def arithmetic(written: Written, rng: random.Random) -> Question:
    if " " not in written.text:
        raise NotAskable
    a, op, b = written.text.split()
    result = {"+": int(a) + int(b), "-": int(a) - int(b), "×": int(a) * int(b)}[op]
    prompt = rng.choice(("What is the result?", "Work it out.", "Calculate.", "What does it come to?"))
    steps = "" if op == "×" else _columns(int(a), int(b), op)
    return Question(prompt, steps, f"{written.text} = {result}", str(result), {"kind": "numeric", "truth": result})


def _columns(a: int, b: int, op: str) -> str:
    """Written addition or subtraction from the last digit, the carry as the third term."""
    lines, carry = [], 0
    for position in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**position % 10, b // 10**position % 10
        if op == "+":
            value = x + y + carry
            lines.append(f"{x} + {y} + {carry} = {value}: {value % 10} carry {value // 10}")
            carry = value // 10
        else:
            borrow = int(x - y - carry < 0)
            value = x - y - carry + 10 * borrow
            lines.append(f"{x} - {y} - {carry}: {value} carry {borrow}")
            carry = borrow
    return "\n".join(lines)


FAMILIES = {"number": number, "arithmetic": arithmetic}
