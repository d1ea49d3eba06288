"""Released names and ours: `from_pretrained` reads both, `save_pretrained(path, layout="released")` writes theirs.

Ours is the model's own parameter names. The released one stacks the encoder's q, k and v, interleaves the rotary pairs
of q and k, and has names of its own (reference: STEP3-VL-10B's repository and vLLM's `StepVLForConditionalGeneration`).
transformers knows the translation for Step-3.7, which shares the encoder; it is registered here for this model.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightTransform

from vlm.configuration import ENCODER_SWITCHES, Step3VLConfig

LAYOUTS = ("own", "released")

# vLLM picks the decoder's class by `text_config.architectures`.
DECODER_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "step3p5": "Step3p5ForCausalLM"}


def register_released_names() -> None:
    """Tells transformers' weight loader how released names become this model's."""
    # Step-3.7's list holds two things: the prefixes of the parts, anchored at the start of a name, which are this
    # model's too; and the names inside its mixture-of-experts decoder, which belong to that decoder alone.
    transforms = get_checkpoint_conversion_mapping("step3p7")
    prefixes = [transform for transform in transforms if transform.source_patterns[0].startswith("^")]
    experts = [transform for transform in transforms if not transform.source_patterns[0].startswith("^")]
    register_checkpoint_conversion_mapping(Step3VLConfig.model_type, prefixes, overwrite=True)
    register_checkpoint_conversion_mapping("step3p5", experts, overwrite=True)


def released_transforms(model: PreTrainedModel) -> list[WeightTransform]:
    """From released names to `model`'s, whether or not `model` was loaded from a released checkpoint."""
    return get_model_conversion_mapping(model, add_legacy=False)


def released_config(config: Step3VLConfig) -> dict[str, Any]:
    """`config` as a released `config.json` has it, complete enough for vLLM's StepVL class."""
    vision = config.vision_config
    text = json.loads(config.text_config.to_json_string(use_diff=False))
    if text.get("architectures") is None and config.text_config.model_type in DECODER_ARCHITECTURES:
        text["architectures"] = [DECODER_ARCHITECTURES[config.text_config.model_type]]
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]  # where released text configs have it
    return {
        "architectures": ["StepVLForConditionalGeneration"],
        "model_type": Step3VLConfig.model_type,
        "image_token_id": config.image_token_id,
        "projector_bias": config.projector_bias,
        "understand_projector_stride": config.understand_projector_stride,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
        "vision_config": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "mlp_ratio": vision.mlp_ratio,
            "ls_init_value": vision.layer_scale_init_value,
            "hidden_act": vision.hidden_act,
            **ENCODER_SWITCHES,
            "output_dim": None,
            "hidden_size": vision.hidden_size,
        },
        "text_config": text,
    }


def write_released_config(directory: str | Path, config: Step3VLConfig) -> None:
    """Replaces `config.json` in `directory`."""
    text = json.dumps(released_config(config), indent=2) + "\n"
    (Path(directory) / "config.json").write_text(text, encoding="utf-8")
