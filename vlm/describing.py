"""What a model is made of, from its config alone: no weight is read or allocated."""

import torch
from rich import box
from rich.console import Group
from rich.table import Table

from vlm.configuration import Step3VLConfig
from vlm.modeling import Step3VLForConditionalGeneration

# Bytes a weight; the integer formats without their scales, which add about a hundredth to a tenth.
PRECISIONS = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}


def count_parts(config: Step3VLConfig) -> dict[str, int]:
    """Parameters of the encoder, projector, decoder and head of a model of `config`, each weight counted once.

    The projector is what stands between the encoder's last block and the decoder: two convolutions and a linear layer.
    A head tied to the embedding counts as 0 and the embedding belongs to the decoder.
    """
    with torch.device("meta"):
        model = Step3VLForConditionalGeneration(config)
    parts = dict.fromkeys(("encoder", "projector", "decoder", "head"), 0)
    for name, parameter in model.named_parameters():
        if "downsampler" in name or "multi_modal_projector" in name:
            part = "projector"
        elif ".vision_model." in name:
            part = "encoder"
        elif ".language_model." in name:
            part = "decoder"
        else:
            part = "head"
        parts[part] += parameter.numel()
    return parts


def describe(name: str, config: Step3VLConfig) -> Group:
    """Two tables for the terminal: what each part is, and what its weights weigh at each precision."""
    vision, text = config.vision_config, config.text_config
    outline = Table(
        title=f"{name}: {config.model_type}", title_justify="left", show_header=False, box=box.SIMPLE, show_edge=False
    )
    outline.add_column(style="bold")
    outline.add_column(overflow="fold")
    outline.add_row(
        "encoder",
        f"{vision.num_hidden_layers} layers, width {vision.hidden_size}, {vision.num_attention_heads} heads, "
        f"MLP {vision.intermediate_size}, patch {vision.patch_size}, 2-D RoPE and learned positions",
    )
    outline.add_row("view", f"{vision.image_size}x{vision.image_size} pixels become {config.image_tokens()} tokens")
    outline.add_row(
        "projector",
        f"two 3x3 stride-2 convolutions ({vision.hidden_size} to {4 * vision.hidden_size}), "
        f"linear to {text.hidden_size}{'' if config.projector_bias else ' without bias'}",
    )
    outline.add_row(
        "decoder",
        f"{text.model_type}: {text.num_hidden_layers} layers, width {text.hidden_size}, "
        f"{text.num_attention_heads} query and {text.num_key_value_heads} key-value heads of {_head_width(text)}, "
        f"MLP {text.intermediate_size}, context {text.max_position_embeddings}",
    )
    tied = "the embedding itself (tied)" if config.tie_word_embeddings else "its own weights"
    outline.add_row("head", f"vocabulary {text.vocab_size}, {tied}")

    parts = count_parts(config)
    total = sum(parts.values())
    weights = Table(title="weights", title_justify="left", show_footer=True, box=box.SIMPLE, show_edge=False)
    weights.add_column("part", "total", no_wrap=True)
    weights.add_column("parameters", f"{total:,}", justify="right", no_wrap=True)
    weights.add_column("share", justify="right", no_wrap=True)
    for precision, size in PRECISIONS.items():
        weights.add_column(precision, _bytes(total * size), justify="right", no_wrap=True)
    for part, count in parts.items():
        memory = (_bytes(count * size) for size in PRECISIONS.values())
        weights.add_row(part, f"{count:,}", f"{100 * count / total:.0f} %", *memory)
    return Group(outline, weights)


def _head_width(text) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.2f} GB"
