"""Configuration of the vision-language model: a perception encoder, a projector and any `AutoModel` decoder.

The field names are those of the released STEP3-VL-10B `config.json` (arXiv 2601.09668): `vision_config`, `text_config`,
`image_token_id`, `projector_bias`, `understand_projector_stride`.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, Step3p7VisionConfig
from transformers.configuration_utils import SubConfigSpec

# Two stride-2 convolutions on the patch grid: 4x fewer columns and 4x fewer rows, hence 16x fewer tokens.
PROJECTOR_STRIDE = 4

# `model_type` of released checkpoints; both name the architecture of this package.
RELEASED_MODEL_TYPES = ("step3_vl", "step_robotics")

# The switches of a released `vision_config`, and the one position of each that this encoder has.
ENCODER_SWITCHES = {
    "use_abs_posemb": True,
    "use_rope2d": True,
    "use_ln_pre": True,
    "use_ln_post": False,
    "use_cls_token": False,
}

PRESETS: dict[str, dict] = {
    # Small enough to train and to serve on two CPU cores; vocabulary and image token id are the shipped tokenizer's.
    "mini": {
        "image_token_id": 5,
        "tie_word_embeddings": True,
        "vision_config": {
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": 128,
            "patch_size": 8,
            "mlp_ratio": 4.0,
            # The released 0.1 keeps 47 layers stable; 4 layers learn faster without that brake.
            "layer_scale_init_value": 1.0,
        },
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 1280,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 2,
        },
    },
    # STEP3-VL-10B: PE-lang G/14 and Qwen3-8B.
    "10b": {
        "image_token_id": 151679,
        "tie_word_embeddings": False,
        "vision_config": {
            "hidden_size": 1536,
            "num_hidden_layers": 47,
            "num_attention_heads": 16,
            "image_size": 728,
            "patch_size": 14,
            "mlp_ratio": 8960 / 1536,
        },
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 65536,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": False,
        },
    },
}


@strict
class Step3VLConfig(PreTrainedConfig):
    """Everything that fixes the architecture; the two scales differ by these values alone.

    Args:
        vision_config: a `Step3p7VisionConfig` or its dict. The released keys (`width`, `layers`, `heads`,
            `ls_init_value`) are accepted.
        text_config: any decoder configuration `AutoModel` knows, or its dict; `model_type` defaults to `qwen3`.
        image_token_id: vocabulary id of the placeholder that image features replace, one id a token.
        projector_bias: whether the linear layer from encoder to decoder has a bias (the released model's has none).
        understand_projector_stride: stride of each of the two down-sampling convolutions; only 2 exists.
        tie_word_embeddings: whether the head is the embedding; what `text_config` says where it says anything.
    """

    model_type = "step3_vl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=Step3p7VisionConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151679
    projector_bias: bool = False
    understand_projector_stride: int = 2
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # released configs point at remote code, which is never run here
        tied = self.tie_word_embeddings
        if isinstance(self.vision_config, dict):
            self.vision_config = _encoder_values(self.vision_config)
        if isinstance(self.text_config, dict):
            model_type = self.text_config.get("model_type", "qwen3")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config.model_type is {model_type!r}, which transformers does not know; "
                    f"use a decoder such as 'qwen3', 'llama' or 'step3p5'."
                )
            tied = self.text_config.get("tie_word_embeddings", tied)
        if self.understand_projector_stride != 2:
            raise ValueError(
                f"understand_projector_stride is {self.understand_projector_stride}; the encoder's down-sampling "
                f"convolutions have stride 2, set it to 2."
            )
        super().__post_init__(**kwargs)
        # One truth in two places: transformers reads the top level, vLLM and the decoder read text_config.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings if tied is None else tied
        self.text_config.tie_word_embeddings = self.tie_word_embeddings

        vision = self.vision_config
        if vision.hidden_size % (4 * vision.num_attention_heads):
            raise ValueError(
                f"the encoder's width {vision.hidden_size} over {vision.num_attention_heads} heads is not a multiple "
                f"of 4 a head, which 2-D rotary positions need; change width or heads."
            )

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; every released `model_type` reads as this one, so that no mismatch is reported."""
        values, unused = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") in RELEASED_MODEL_TYPES:
            values["model_type"] = cls.model_type
        return values, unused

    @classmethod
    def preset(cls, name: str, **overrides) -> "Step3VLConfig":
        """The configuration called `name` (`mini` or `10b`), with fields replaced by `overrides`.

        A dictionary for `vision_config` or `text_config` replaces the fields it names and leaves the others.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset named {name!r}; there are {', '.join(PRESETS)}.")
        # Copied two levels deep: the configuration classes take ownership of the dictionaries they are given.
        values = {k: dict(v) if isinstance(v, dict) else v for k, v in PRESETS[name].items()}
        if "tie_word_embeddings" in overrides:
            values["text_config"]["tie_word_embeddings"] = overrides["tie_word_embeddings"]
        for field, change in overrides.items():
            values[field] = {**values[field], **change} if isinstance(change, dict) else change
        return cls(**values)

    def image_tokens(self, side: int | None = None) -> int:
        """Tokens of one square view of `side` pixels (default: the global view's size)."""
        side = self.vision_config.image_size if side is None else side
        return view_tokens(side, self.vision_config.patch_size)


class StepRoboticsConfig(Step3VLConfig):
    """The other released `model_type`, so that `AutoConfig` finds it; what is read is a plain `Step3VLConfig`."""

    model_type = "step_robotics"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        return Step3VLConfig.from_dict({**config_dict, "model_type": Step3VLConfig.model_type}, **kwargs)


def view_tokens(side: int, patch_size: int) -> int:
    """Tokens of a square view of `side` pixels: a grid of patches, halved (rounding up) by each convolution."""
    columns = side // patch_size
    for _ in range(2):  # kernel 3, stride 2, padding 1
        columns = (columns + 1) // 2
    return columns**2


def _encoder_values(released: dict[str, Any]) -> dict[str, Any]:
    """A `vision_config` with the released switches checked and removed. Raises ValueError for a foreign encoder."""
    for switch, only in ENCODER_SWITCHES.items():
        if released.get(switch, only) != only:
            raise ValueError(
                f"vision_config.{switch} is {released[switch]}; this perception encoder has {switch}={only}, "
                f"use a STEP3-VL checkpoint."
            )
    if "ls_init_value" in released and released["ls_init_value"] is None:
        raise ValueError("vision_config.ls_init_value is null; this perception encoder has LayerScale, give its value.")
    # Hub configs name the encoder's type by its remote code; the class here is always the same. `output_dim` is read
    # by nobody: the projector's width is the decoder's.
    dropped = {*ENCODER_SWITCHES, "model_type", "output_dim"}
    return {key: value for key, value in released.items() if key not in dropped}
