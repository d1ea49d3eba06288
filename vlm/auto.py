"""The model's classes, and transformers' Auto classes told of them.

With that, `AutoModelForImageTextToText` and its kin read our checkpoints and the released ones, without remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlm.configuration import Step3VLConfig, StepRoboticsConfig
from vlm.modeling import Step3VLForConditionalGeneration, Step3VLModel
from vlm.processing import Step3VLImageProcessor, Step3VLProcessor

__all__ = [
    "Step3VLConfig",
    "Step3VLForConditionalGeneration",
    "Step3VLImageProcessor",
    "Step3VLModel",
    "Step3VLProcessor",
]

AutoConfig.register(Step3VLConfig.model_type, Step3VLConfig, exist_ok=True)
AutoConfig.register(StepRoboticsConfig.model_type, StepRoboticsConfig, exist_ok=True)
AutoModel.register(Step3VLConfig, Step3VLModel, exist_ok=True)
AutoModelForImageTextToText.register(Step3VLConfig, Step3VLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(Step3VLConfig, Step3VLProcessor, exist_ok=True)
