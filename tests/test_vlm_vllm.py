"""vLLM's own StepVL class reads what is saved in the released layout, and says what the model here says.

vLLM wants another torch than this repository, so these tests run where TRIPTYCH_VLLM_PYTHON names an interpreter that
has it; what it said about the tiny reference checkpoint is kept in `test_vlm_golden.py`'s data.
"""

import os

import pytest
from PIL import Image, ImageDraw
from small_vlm import noise, user

from vlm.answering import load
from vlm.rollout import Rollout
from vlm.sampling import Sampling
from vlm.vllm_comparison import VLLM, interpreter_with_vllm

PYTHON = os.environ.get("TRIPTYCH_VLLM_PYTHON") or interpreter_with_vllm()
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="vLLM is not installed; TRIPTYCH_VLLM_PYTHON may name an interpreter that has it"
)


def shapes(background: str, *colours: str) -> Image.Image:
    picture = Image.new("RGB", (128, 128), background)
    draw = ImageDraw.Draw(picture)
    for i, colour in enumerate(colours):
        draw.ellipse((8 + 40 * i, 10 + 30 * i, 40 + 40 * i, 42 + 30 * i), fill=colour)
    return picture


CONVERSATIONS = [
    user("What is 17 + 25?"),
    user(shapes("white", "red", "blue"), "What is in the picture?"),
    user(shapes("black", "yellow"), "How many objects are there?"),
    user(shapes("white", "green"), shapes("grey", "red", "red", "blue"), "Which picture has more objects?"),
    user(noise(90, 50), "Describe the picture."),
]


@pytest.fixture(scope="module", params=["mini", "tiny reference checkpoint"])
def parts(request):
    if request.param == "mini":
        return load("mini")
    return load(str(request.getfixturevalue("shared") / "reference" / "step3_vl" / "tiny_checkpoint"))


def test_vllm_says_the_same_greedily_with_no_one_and_two_pictures(parts):
    model, processor = parts
    ours = Rollout(model, processor).generate(CONVERSATIONS, Sampling(temperature=0, max_tokens=48))
    with VLLM(PYTHON, model, processor, CONVERSATIONS, 48, sampling={"temperature": 0.0}) as vllm:
        theirs = vllm.answer()
    assert len({tuple(own[0]) for own in theirs.samples}) == len(CONVERSATIONS), "it looks at what it is given"
    assert theirs.samples == [[list(sample.tokens) for sample in own] for own in ours]
