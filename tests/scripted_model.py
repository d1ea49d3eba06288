"""Stand-ins for the tests of the app: a model whose text is written here, and a picture file."""

import time

import torch
from PIL import Image, ImageDraw

from vlm.answering import ModelError

REASONING = "1: - - - 4 red moon\n# . # <b>\n*4* + _1_"
ANSWER = "One red moon.\nAnswer: 5"
TEXT = f"<think>\n{REASONING}\n</think>\n{ANSWER}"


class Script:
    """Stands in for a model: streams a text word by word and remembers what it was asked."""

    def __init__(self, text: str = TEXT, seconds_a_word: float = 0.0):
        self.text, self.seconds_a_word, self.asked, self.stops = text, seconds_a_word, [], []

    def endless(self) -> None:
        """From now on only a stop ends the answer, however slow the machine that presses it."""
        self.text, self.seconds_a_word = TEXT + " and so on" * 10_000, 0.2

    def load(self, name):
        if name not in ("mini", "other"):
            raise ModelError(f"there is no model {name!r}: use mini, a directory or a hub id.")
        model = torch.nn.Linear(1000, 1000)
        model.device = torch.device("cpu")  # transformers' models have this attribute
        return model, None

    def stream(self, model, processor, conversation, max_new_tokens=512, temperature=0.0, stop=None):
        self.asked.append(conversation)
        self.stops.append(stop)
        for word in self.text.replace(" ", " \0").split("\0"):
            if stop is not None and stop.is_set():
                return
            time.sleep(self.seconds_a_word)
            yield word


def picture_file(folder, name="scene.png", mode="RGB", **options):
    """Path of a 40 x 30 picture: blue, with a red left half."""
    picture = Image.new("RGB", (40, 30), "blue")
    ImageDraw.Draw(picture).rectangle((0, 0, 19, 29), fill="red")
    path = folder / name
    picture.convert(mode).save(path, **options)
    return path
