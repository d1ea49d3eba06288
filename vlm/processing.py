"""Pictures and chat to model inputs.

`Step3VLImageProcessor` makes the views of every picture, `Step3VLProcessor` adds the tokens that stand for them: crops
first, `<patch_start>` features `<patch_end>` each and `<patch_newline>` after every row of crops but the last, then
`<im_start>` features `<im_end>` for the global view (the layout of STEP3-VL-10B's released processor).
"""

from typing import Any

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs
from transformers.utils.chat_template_utils import _get_control_token_patterns, mark_control_tokens

from vlm.configuration import Step3VLConfig, view_tokens
from vlm.pictures import PictureError, open_picture
from vlm.views import cut_views, plan_views

# Side of a local crop at the released scale, in pixels. A global view no larger than this has nothing to crop for.
RELEASED_CROP_SIDE = 504

# The released sizes give a square at most 36, and a ribbon about as many as it is times longer than high; each crop is
# 3 MB and 83 tokens, so a ribbon of a thousand would fill the memory and no context would hold it.
MAX_CROPS = 128

IMAGE_TOKEN = "<im_patch>"
# The tokens only the processor may write; the same words typed by a person stay words.
PICTURE_TOKENS = (IMAGE_TOKEN, "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


class Step3VLImagesKwargs(ImagesKwargs, total=False):
    """What one call may change: `local_crops`, whether pictures get local crops beside the global view."""

    local_crops: bool


class Step3VLProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: Step3VLImagesKwargs


class Step3VLImageProcessor(BaseImageProcessor):
    """Makes normalised views of pictures.

    Args:
        image_size: side of the square global view, in pixels.
        crop_size: side of a square local crop, in pixels.
        local_crops: whether large or elongated pictures get local crops at all.
        patch_size: side of the encoder's patch, in pixels; with the sizes above it fixes the number of tokens.
        image_mean, image_std: a channel's mean and deviation where white is 1; CLIP's by default.
    """

    model_input_names = ["pixel_values", "pixel_values_local", "num_local_patches"]
    valid_kwargs = Step3VLImagesKwargs

    def __init__(
        self,
        image_size: int = 728,
        crop_size: int = RELEASED_CROP_SIDE,
        local_crops: bool = True,
        patch_size: int = 14,
        image_mean: list[float] = OPENAI_CLIP_MEAN,
        image_std: list[float] = OPENAI_CLIP_STD,
        **kwargs,
    ):
        kwargs.pop("image_processor_type", None)
        super().__init__(**kwargs)
        self.image_size = image_size
        self.crop_size = crop_size
        self.local_crops = local_crops
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def for_config(
        cls, config: Step3VLConfig, crop_size: int = RELEASED_CROP_SIDE, local_crops: bool | None = None
    ) -> "Step3VLImageProcessor":
        """The one that fits `config`; local crops are made where they are smaller than the global view."""
        vision = config.vision_config
        if local_crops is None:
            local_crops = crop_size < vision.image_size
        return cls(vision.image_size, crop_size, local_crops, vision.patch_size)

    def fetch_images(self, images: Any) -> Any:
        """The same nesting with every leaf opened by `open_picture`, which see for the errors."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return open_picture(images)

    def preprocess(self, images: Any, local_crops: bool | None = None, **kwargs) -> BatchFeature:
        """Views of one picture or of a (nested) list of them, in order.

        Returns:
            `pixel_values` (pictures, 3, image_size, image_size) float32; `num_local_patches`, how many crops each
            picture has; `pixel_values_local` (crops, 3, crop_size, crop_size) where there are any; and
            `patch_newline_masks`, one list of flags a picture.

        Raises:
            PictureError: a picture cannot be read, or would take more than `MAX_CROPS` crops.
        """
        local_crops = self.local_crops if local_crops is None else local_crops
        crop_side = self.crop_size if local_crops else None
        views, crops, newlines = [], [], []
        for picture in _flat(self.fetch_images(images)):
            plan = plan_views(*picture.size, self.image_size, crop_side)
            if len(plan.newlines) > MAX_CROPS:
                raise PictureError(
                    f"the picture of {picture.width}x{picture.height} pixels would take {len(plan.newlines)} local "
                    f"crops, at most {MAX_CROPS} are made; cut it into pieces or pass local_crops=False."
                )
            view, own_crops = cut_views(picture, plan, self.image_size, crop_side, self.image_mean, self.image_std)
            views.append(view)
            crops.extend(own_crops)
            newlines.append(plan.newlines)
        data = {
            "pixel_values": torch.stack(views),
            "num_local_patches": [len(flags) for flags in newlines],
            "patch_newline_masks": newlines,
        }
        if crops:
            data["pixel_values_local"] = torch.stack(crops)
        return BatchFeature(data)

    def image_tokens(self, newlines: list[bool]) -> int:
        """All the tokens a picture takes, marks included, given one newline flag a crop."""
        crop = view_tokens(self.crop_size, self.patch_size) + 2
        return len(newlines) * crop + sum(newlines) + view_tokens(self.image_size, self.patch_size) + 2


class Step3VLProcessor(ProcessorMixin):
    """Chat and pictures to model inputs; saves and loads like any transformers processor.

    `apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt",
    add_generation_prompt=True)` gives `input_ids`, `attention_mask` and, with pictures, `pixel_values`,
    `num_local_patches` and `pixel_values_local`. Batches are padded on the left, as generation needs.
    """

    valid_processor_kwargs = Step3VLProcessorKwargs
    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor: Step3VLImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ):
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no {IMAGE_TOKEN} token; add {', '.join(PICTURE_TOKENS)} to it.")
        # A generated token follows the last one of its row, so the padding goes before the first.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def for_config(
        cls,
        config: Step3VLConfig,
        tokenizer: PreTrainedTokenizerBase,
        crop_size: int = RELEASED_CROP_SIDE,
        local_crops: bool | None = None,
        chat_template: str | None = None,
    ) -> "Step3VLProcessor":
        """The processor for a model of `config`. Raises ValueError where the tokenizer belongs to another model."""
        processor = cls(Step3VLImageProcessor.for_config(config, crop_size, local_crops), tokenizer, chat_template)
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"the tokenizer's {IMAGE_TOKEN} is id {processor.image_token_id}, the model's image_token_id is "
                f"{config.image_token_id}; use the tokenizer that belongs to the model."
            )
        return processor

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """The two parts `from_pretrained` builds. Released repositories have no settings of ours for the pictures;
        what is needed then follows from the model's own config."""
        subfolder = kwargs.pop("subfolder", "")
        tokenizer = cls._load_tokenizer_from_pretrained(
            "tokenizer", pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )
        settings = (processor_dict or {}).get("image_processor")
        if isinstance(settings, dict) and settings.get("image_processor_type") == Step3VLImageProcessor.__name__:
            return [Step3VLImageProcessor(**settings), tokenizer]
        hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        config = Step3VLConfig.from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, **{k: v for k, v in kwargs.items() if k in hub}
        )
        return [Step3VLImageProcessor.for_config(config), tokenizer]

    @property
    def unused_input_names(self) -> list[str]:
        return ["patch_newline_masks"]

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        """A batch may hold rows without pictures: the pictures of all rows become one flat list, or none."""
        images, text, videos, audio = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        images = _flat(images) or None if images is not None else None
        return images, text, videos, audio

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The tokens that stand for one picture."""
        pictures = self.image_processor
        crop = IMAGE_TOKEN * view_tokens(pictures.crop_size, pictures.patch_size)
        view = IMAGE_TOKEN * view_tokens(pictures.image_size, pictures.patch_size)
        tokens = ""
        for newline in image_inputs["patch_newline_masks"][image_idx]:
            tokens += f"<patch_start>{crop}<patch_end>" + "<patch_newline>" * newline
        return f"{tokens}<im_start>{view}<im_end>"

    def apply_chat_template(self, conversation, *args, tokenize: bool = False, **kwargs):
        """As in transformers; and a person who types `<im_patch>` has typed text, not placed a picture."""
        if tokenize:
            conversation, typed = _guard_picture_tokens(conversation)
            if typed:
                if kwargs.get("return_assistant_tokens_mask"):
                    raise ValueError(
                        f"the conversation's text holds one of {', '.join(PICTURE_TOKENS)}, which has no place in an "
                        f"assistant mask; remove it from the text."
                    )
                settings = dict(kwargs.get("processor_kwargs") or {})
                kwargs["processor_kwargs"] = {**settings, "sanitize_control_tokens": True}
        return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)


def _flat(images: Any) -> list:
    """Every picture in a nested list, in order."""
    if not isinstance(images, list | tuple):
        return [images]
    return [picture for inner in images for picture in _flat(inner)]


def _guard_picture_tokens(conversation: list) -> tuple[list, bool]:
    """Marks the picture tokens in texts, in transformers' own way: what is marked is encoded as plain text.

    Returns the conversation, or batch of them, and whether anything was marked.
    """
    pattern, _ = _get_control_token_patterns(PICTURE_TOKENS)
    found = False

    def guarded(part: Any) -> Any:
        nonlocal found
        if isinstance(part, str):
            found = found or pattern.search(part) is not None
            return mark_control_tokens(part, pattern)
        if isinstance(part, dict):
            # Only text is rendered; a path or an address must reach the picture as it was written.
            return {key: guarded(value) if key in ("content", "text") else value for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [guarded(inner) for inner in part]
        return part

    return guarded(conversation), found
