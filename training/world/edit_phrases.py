"""What users say when they want a picture changed, in English and Chinese: names of things, places, whole instructions.

Every clause is an order ("make the star red"), so that clauses can be joined and asked for politely.
"""

import random
from dataclasses import dataclass

from training.world.scenes import Thing, place

LANGUAGES = ("en", "zh")

COLOUR_NAMES = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "pink": "粉色", "brown": "棕色", "black": "黑色", "gray": "灰色", "white": "白色", "light blue": "浅蓝色",
    "light green": "浅绿色",
}  # fmt: skip
SHAPE_NAMES = {
    "circle": ("圆形", "圆"), "square": ("正方形", "方形"), "triangle": ("三角形",), "star": ("星星", "星形"),
    "heart": ("心形",), "diamond": ("菱形",), "cross": ("十字", "十字形"), "moon": ("月亮",), "ring": ("圆环",),
}  # fmt: skip
SIZE_NAMES = {"small": "小", "big": "大"}
CORNERS = {
    (1, 1): ("top left corner", "左上角"), (1, 4): ("top right corner", "右上角"),
    (4, 1): ("bottom left corner", "左下角"), (4, 4): ("bottom right corner", "右下角"),
}  # fmt: skip
# A step of one cell: rows down, columns to the right.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
_DIRECTION_NAMES = {"left": ("to the left", "向左"), "right": ("to the right", "向右"), "up": ("up", "向上"),
                    "down": ("down", "向下")}  # fmt: skip
_BESIDE = {
    "left": ("left of", "左边"),
    "right": ("right of", "右边"),
    "up": ("above", "上面"),
    "down": ("below", "下面"),
}
_NUMBERS = {1: ("one", "一"), 2: ("two", "两"), 3: ("three", "三"), 4: ("four", "四"), 5: ("five", "五")}
_EXTREMES = {"left": ("leftmost", "最左边"), "right": ("rightmost", "最右边"), "up": ("topmost", "最上面"),
             "down": ("lowest", "最下面")}  # fmt: skip
_ORDINALS = (("first", "第一个"), ("second", "第二个"), ("third", "第三个"), ("fourth", "第四个"), ("fifth", "第五个"))


@dataclass(frozen=True)
class Reference:
    """How a thing is named; what is None is not said."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    cell: tuple[int, int] | None = None

    def fits(self, thing: Thing) -> bool:
        return all(
            said in (None, is_)
            for said, is_ in ((self.colour, thing.colour), (self.shape, thing.shape), (self.size, thing.size),
                              (self.cell, (thing.row, thing.column)))
        )  # fmt: skip

    @property
    def words(self) -> str:
        """The same in the world's short form, place first."""
        at = place(*self.cell) if self.cell else None
        return " ".join(said for said in (at, self.size, self.colour, self.shape) if said)


# One clause a template; `{a}` and `{b}` are things, `{where}` a place with its preposition.
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "recolour": {
        "en": ("make {a} {colour}", "change {a} to {colour}", "turn {a} {colour}", "paint {a} {colour}",
               "change the color of {a} to {colour}", "change the colour of {a} to {colour}", "recolour {a} {colour}",
               "color {a} {colour}"),
        "zh": ("把{a}变成{colour}", "将{a}改成{colour}", "把{a}的颜色改成{colour}", "将{a}换成{colour}",
               "把{a}涂成{colour}"),
    },
    "bigger": {
        "en": ("make {a} bigger", "make {a} larger", "enlarge {a}", "grow {a}"),
        "zh": ("把{a}变大", "放大{a}", "将{a}放大"),
    },
    "smaller": {
        "en": ("make {a} smaller", "shrink {a}", "reduce the size of {a}"),
        "zh": ("把{a}变小", "缩小{a}", "将{a}缩小"),
    },
    "double": {
        "en": ("make {a} twice as big", "double the size of {a}", "make {a} two times larger"),
        "zh": ("把{a}放大到两倍", "将{a}放大一倍"),
    },
    "half": {
        "en": ("make {a} half as big", "halve the size of {a}", "shrink {a} to half its size"),
        "zh": ("把{a}缩小到一半", "将{a}缩小一半"),
    },
    "move": {
        "en": ("move {a} {where}", "shift {a} {where}", "bring {a} {where}"),
        "zh": ("把{a}移到{where}", "将{a}移动到{where}"),
    },
    "put": {
        "en": ("put {a} {where}", "place {a} {where}"),
        "zh": ("把{a}放到{where}", "将{a}放在{where}"),
    },
    "step": {
        "en": ("move {a} {steps}", "shift {a} {steps}"),
        "zh": ("把{a}{steps}", "将{a}{steps}"),
    },
    "add": {
        "en": ("add {new} {where}", "put {new} {where}", "draw {new} {where}", "place {new} {where}",
               "insert {new} {where}"),
        "zh": ("在{where}添加{new}", "在{where}增加{new}", "在{where}画{new}", "在{where}放{new}"),
    },
    "remove": {
        "en": ("remove {a}", "delete {a}", "erase {a}", "take away {a}", "get rid of {a}"),
        "zh": ("删除{a}", "去掉{a}", "把{a}删掉", "移除{a}", "把{a}去掉"),
    },
    "replace": {
        "en": ("replace {a} with {new}", "turn {a} into {new}", "change {a} into {new}", "swap {a} for {new}"),
        "zh": ("把{a}换成{new}", "将{a}变成{new}", "用{new}代替{a}", "把{a}改成{new}"),
    },
    "swap": {
        "en": ("swap {a} and {b}", "swap the positions of {a} and {b}", "exchange {a} and {b}",
               "let {a} and {b} change places", "switch {a} and {b}"),
        "zh": ("交换{a}和{b}", "把{a}和{b}交换位置", "将{a}和{b}的位置交换"),
    },
    "swap_colours": {
        "en": ("swap the colors of {a} and {b}", "exchange the colours of {a} and {b}",
               "give {a} and {b} each other's color"),
        "zh": ("交换{a}和{b}的颜色", "把{a}和{b}的颜色交换"),
    },
    "background": {
        "en": ("make the background {colour}", "change the background to {colour}", "turn the background {colour}",
               "use a {colour} background", "set the background color to {colour}", "paint the background {colour}"),
        "zh": ("把背景变成{colour}", "将背景改成{colour}", "把背景换成{colour}", "把背景颜色改成{colour}"),
    },
    "number": {
        "en": ("change the number to {new}", "replace {old} with {new}", "change {old} to {new}",
               "make the number {new}", "write {new} instead of {old}"),
        "zh": ("把数字改成{new}", "把{old}改成{new}", "将{old}换成{new}", "把数字{old}变成{new}"),
    },
    "word": {
        "en": ("change the text to {new}", "replace {old} with {new}", "change {old} to {new}",
               "write {new} instead of {old}", "change the word {old} to {new}"),
        "zh": ("把文字改成{new}", "把{old}改成{new}", "将{old}换成{new}", "把文字{old}变成{new}"),
    },
    "digit": {
        "en": ("change the digit {old} to {new}", "replace the {old} with a {new}", "turn the {old} into a {new}",
               "change the {old} to {new}"),
        "zh": ("把数字{old}改成{new}", "将{old}换成{new}", "把{old}变成{new}"),
    },
    "digit_at": {
        "en": ("change the {ordinal} digit to {new}", "make the {ordinal} digit a {new}",
               "replace the {ordinal} digit with {new}"),
        "zh": ("把{ordinal}数字改成{new}", "将{ordinal}数字换成{new}"),
    },
    "outlined": {
        "en": ("draw only the outline of {a}", "make {a} hollow", "leave only the outline of {a}",
               "turn {a} into an outline"),
        "zh": ("只留下{a}的轮廓", "把{a}变成空心", "把{a}改成轮廓"),
    },
    "striped": {
        "en": ("make {a} striped", "give {a} stripes", "fill {a} with stripes", "add stripes to {a}"),
        "zh": ("给{a}添加条纹", "把{a}变成条纹", "将{a}改成条纹图案"),
    },
    "dotted": {
        "en": ("make {a} dotted", "give {a} dots", "fill {a} with dots", "add dots to {a}"),
        "zh": ("给{a}添加圆点", "把{a}变成圆点图案", "将{a}改成圆点图案"),
    },
    "bordered": {
        "en": ("give {a} a black outline", "add a black outline to {a}", "draw a black outline around {a}",
               "put a black outline on {a}"),
        "zh": ("给{a}添加黑色轮廓", "给{a}加黑色的边", "在{a}上增加黑色轮廓"),
    },
    "plain": {
        "en": ("make {a} plain", "make {a} solid", "fill {a} with one color", "give {a} a plain fill"),
        "zh": ("把{a}变成纯色", "将{a}改成实心纯色"),
    },
    "keep": {
        "en": ("leave only {group}", "keep only {group}", "remove everything but {group}",
               "delete all objects except {group}"),
        "zh": ("只留下{group}", "只保留{group}", "除了{group}都删除"),
    },
    "clear": {
        "en": ("remove all {group}", "delete all {group}", "erase every one of the {group}", "take away all {group}"),
        "zh": ("删除所有{group}", "去掉所有{group}", "把{group}都删掉"),
    },
    "thin": {
        "en": ("remove all {group} except {rest}", "delete all {group} but {rest}", "of the {group}, keep only {rest}"),
        "zh": ("{group}只留下{rest}", "{group}只保留{rest}"),
    },
}  # fmt: skip

_ASKED = {
    "en": ("{0}.",) * 6 + ("{0}", "Please {1}.", "Please {1}", "Can you {1}?", "Could you {1}?", "I want you to {1}."),
    "zh": ("{0}。",) * 5 + ("{0}", "请{0}。", "请{0}", "请帮我{0}。", "能{0}吗？"),
}
_JOINED = {"en": (", then ", " and ", ", and then ", "; then "), "zh": ("，然后", "，再", "，并", "，接着")}


def clause(kind: str, language: str, rng: random.Random, **slots: str) -> str:
    """One order, without capital and full stop."""
    return rng.choice(TEMPLATES[kind][language]).format(**slots)


def instruction(clauses: list[str], language: str, rng: random.Random) -> str:
    """The clauses as one request, in their order."""
    joint = rng.choice(_JOINED[language])
    inner = ", " if language == "en" else "，"
    text = inner.join(clauses[:-1]) + joint + clauses[-1] if len(clauses) > 1 else clauses[0]
    return rng.choice(_ASKED[language]).format(text[0].upper() + text[1:], text)


def colour_name(colour: str, language: str, rng: random.Random) -> str:
    if language == "zh":
        return COLOUR_NAMES[colour]
    return rng.choice(("gray", "grey")) if colour == "gray" else colour


def thing_name(reference: Reference, language: str, rng: random.Random) -> str:
    """`the small red star in row 2, column 3`."""
    colour, shape, size = reference.colour, reference.shape, reference.size
    if language == "zh":
        words = COLOUR_NAMES[colour] + "的" if colour else ""
        words += SIZE_NAMES.get(size, "") + (rng.choice(SHAPE_NAMES[shape]) if shape else "图形")
        return words if reference.cell is None else f"{cell_name(reference.cell, 'zh', rng)}的{words}"
    noun = shape or rng.choice(("object", "shape", "thing"))
    words = " ".join(w for w in ("the", size, colour and colour_name(colour, "en", rng), noun) if w)
    return words if reference.cell is None else f"{words} {where(reference.cell, 'en', rng)}"


def new_name(colour: str | None, shape: str, size: str, language: str, rng: random.Random) -> str:
    """`a small red star`; medium is not said."""
    said = size if size != "medium" else ""
    if language == "zh":
        name = rng.choice(SHAPE_NAMES[shape])
        return "一个" + (COLOUR_NAMES[colour] + "的" if colour else "") + SIZE_NAMES.get(said, "") + name
    words = " ".join(w for w in (said, colour and colour_name(colour, "en", rng), shape) if w)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def cell_name(cell: tuple[int, int], language: str, rng: random.Random) -> str:
    """`top left corner`, `row 2, column 3`."""
    if cell in CORNERS:
        return CORNERS[cell][language == "zh"]
    row, column = cell
    if language == "zh":
        return f"第{row}行第{column}列"
    return rng.choice(("row {0}, column {1}", "row {0} column {1}")).format(row, column)


def where(cell: tuple[int, int], language: str, rng: random.Random, *, to: bool = False) -> str:
    """A place with its preposition, `in row 2, column 3`; with `to`, a place to move to."""
    name = cell_name(cell, language, rng)
    if language == "zh":
        return name
    article = "the " if cell in CORNERS else ""
    return f"{'to' if to else rng.choice(('in', 'at'))} {article}{name}"


def beside(direction: str, anchor: str, language: str, rng: random.Random) -> str:
    """`to the left of the red star`: the next cell on that side."""
    english, chinese = _BESIDE[direction]
    if language == "zh":
        return f"{anchor}的{chinese}"
    if direction in ("left", "right"):
        return rng.choice(("to the {0} {1}", "directly {0} {1}")).format(english, anchor)
    return rng.choice(("directly {0} {1}", "right {0} {1}", "{0} {1}")).format(english, anchor)


def steps_name(direction: str, count: int, language: str, rng: random.Random) -> str:
    """`two cells to the left`."""
    english, chinese = _DIRECTION_NAMES[direction]
    if language == "zh":
        return f"{chinese}移动{_NUMBERS[count][1]}格"
    unit = rng.choice(("cell", "step")) + ("s" if count > 1 else "")
    return f"{_NUMBERS[count][0]} {unit} {english}"


def group_name(colour: str | None, shape: str | None, language: str, rng: random.Random) -> str:
    """`stars`, `red objects`."""
    if language == "zh":
        return f"{COLOUR_NAMES[colour]}的图形" if shape is None else rng.choice(SHAPE_NAMES[shape])
    if shape is None:
        return f"{colour_name(colour, 'en', rng)} {rng.choice(('objects', 'shapes', 'things'))}"
    return shape + ("es" if shape.endswith("s") else "s")


def counted_group(count: int, colour: str | None, shape: str | None, language: str, rng: random.Random) -> str:
    """`the two stars`: all there are."""
    name = group_name(colour, shape, language, rng)
    if language == "zh":
        measure = f"{_NUMBERS[count][1]}个" if count > 1 and rng.random() < 0.5 else ""
        return f"{measure}{name}"
    if count == 1:
        return f"the {name.removesuffix('es') if shape == 'cross' else name.removesuffix('s')}"
    return f"the {_NUMBERS[count][0]} {name}" if rng.random() < 0.5 else f"the {name}"


def extreme_name(direction: str, count: int, language: str) -> str:
    """`the two leftmost ones`."""
    english, chinese = _EXTREMES[direction]
    if language == "zh":
        return f"{chinese}的{_NUMBERS[count][1]}个"
    return f"the {english} one" if count == 1 else f"the {_NUMBERS[count][0]} {english} ones"


def ordinal_name(index: int, length: int, language: str, rng: random.Random) -> str:
    """`second`; the last one is also called so."""
    if index >= len(_ORDINALS) or (index == length - 1 and rng.random() < 0.5):
        if index != length - 1:
            raise ValueError(f"there is no word for digit {index + 1} of {length}.")
        return "最后一个" if language == "zh" else "last"
    return _ORDINALS[index][language == "zh"]
