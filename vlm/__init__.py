"""The vision-language model: configuration, modeling, processing, hub names.

Torch is loaded with the first of the model's classes that is asked for, so that programs over a distant model start
at once. From then on transformers' Auto classes know the model; `import vlm.auto` is enough for that.
"""

from typing import TYPE_CHECKING

from vlm.pictures import PictureError, open_picture

if TYPE_CHECKING:
    from vlm.auto import (
        Step3VLConfig,
        Step3VLForConditionalGeneration,
        Step3VLImageProcessor,
        Step3VLModel,
        Step3VLProcessor,
    )

__all__ = [
    "PictureError",
    "Step3VLConfig",
    "Step3VLForConditionalGeneration",
    "Step3VLImageProcessor",
    "Step3VLModel",
    "Step3VLProcessor",
    "open_picture",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vlm import auto

    return getattr(auto, name)
