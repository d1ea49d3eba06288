"""What loads torch, and when transformers' Auto classes know the model."""

import subprocess
import sys
from pathlib import Path

import pytest

import vlm
from vlm import auto

ROOT = Path(__file__).parent.parent

KNOWN = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
assert AutoConfig.for_model("step3_vl").__class__.__name__ == "Step3VLConfig"
config = type(AutoConfig.for_model("step3_vl"))
assert AutoModelForImageTextToText._model_mapping[config].__name__ == "Step3VLForConditionalGeneration"
assert PROCESSOR_MAPPING[config].__name__ == "Step3VLProcessor"
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_programs_over_a_distant_model_start_without_torch():
    python(
        "import sys, pacore.__main__, pacore.batch, pacore.server\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


def test_with_the_first_class_the_auto_classes_know_the_model():
    python("from vlm import Step3VLConfig" + KNOWN)


def test_the_package_has_what_it_says_and_nothing_else():
    assert {name: getattr(vlm, name) for name in auto.__all__} == {name: getattr(auto, name) for name in auto.__all__}
    assert set(auto.__all__) < set(vlm.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = vlm.nothing_like_it
