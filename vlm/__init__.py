"""The vision-language model: configuration, modeling, processing, hub names."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlm.configuration import Step3VLConfig, StepRoboticsConfig
from vlm.modeling import Step3VLForConditionalGeneration, Step3VLModel
from vlm.pictures import PictureError, open_picture
from vlm.processing import Step3VLImageProcessor, Step3VLProcessor

# With these, transformers' Auto classes read our checkpoints and the released ones, without remote code.
AutoConfig.register(Step3VLConfig.model_type, Step3VLConfig, exist_ok=True)
AutoConfig.register(StepRoboticsConfig.model_type, StepRoboticsConfig, exist_ok=True)
AutoModel.register(Step3VLConfig, Step3VLModel, exist_ok=True)
AutoModelForImageTextToText.register(Step3VLConfig, Step3VLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(Step3VLConfig, Step3VLProcessor, exist_ok=True)

__all__ = [
    "PictureError",
    "Step3VLConfig",
    "Step3VLForConditionalGeneration",
    "Step3VLImageProcessor",
    "Step3VLModel",
    "Step3VLProcessor",
    "open_picture",
]
