"""The released checkpoint's names beside ours: one table, read in both directions.

The released file is one state dict. `connector.…` is the connector; everything else is the transformer, in the names of
the Flux reference code, with q, k and v (and in single blocks the MLP's first layer) stacked in one matrix. Ours are
the parameter names of `EditConnector` and diffusers' `FluxTransformer2DModel`, after the component's name.
"""

import re
from collections.abc import Iterable

import torch

LORA_PREFIX = "lora_unet_"


def _within(parent: str, *layers: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{layer}" for layer in layers)


def _stream(released: str, norm: str, q_k_v: tuple[str, str, str], out: str, q_k_norm: tuple[str, str], mlp: str):
    """One of the two streams of a double block."""
    block = "transformer.transformer_blocks.#"
    return {
        f"double_blocks.#.{released}_mod.lin": _within(block, f"{norm}.linear"),
        f"double_blocks.#.{released}_attn.qkv": _within(f"{block}.attn", *q_k_v),
        f"double_blocks.#.{released}_attn.norm.query_norm": _within(f"{block}.attn", q_k_norm[0]),
        f"double_blocks.#.{released}_attn.norm.key_norm": _within(f"{block}.attn", q_k_norm[1]),
        f"double_blocks.#.{released}_attn.proj": _within(f"{block}.attn", out),
        f"double_blocks.#.{released}_mlp.0": _within(block, f"{mlp}.net.0.proj"),
        f"double_blocks.#.{released}_mlp.2": _within(block, f"{mlp}.net.2"),
    }


_SINGLE = "transformer.single_transformer_blocks.#"
_TIME_TEXT = "transformer.time_text_embed"
_REFINER = "connector.token_refiner"
_REFINER_BLOCK = "connector.token_refiner.token_refiner.refiner_blocks.#"

# Released layer -> our layers; `#` is the block's number.
OURS: dict[str, tuple[str, ...]] = {
    "img_in": ("transformer.x_embedder",),
    "txt_in": ("transformer.context_embedder",),
    "time_in.in_layer": (f"{_TIME_TEXT}.timestep_embedder.linear_1",),
    "time_in.out_layer": (f"{_TIME_TEXT}.timestep_embedder.linear_2",),
    "vector_in.in_layer": (f"{_TIME_TEXT}.text_embedder.linear_1",),
    "vector_in.out_layer": (f"{_TIME_TEXT}.text_embedder.linear_2",),
    **_stream("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "ff"),
    **_stream(
        "txt",
        "norm1_context",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        "to_add_out",
        ("norm_added_q", "norm_added_k"),
        "ff_context",
    ),
    "single_blocks.#.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "single_blocks.#.linear1": _within(_SINGLE, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "single_blocks.#.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.#.norm.query_norm": (f"{_SINGLE}.attn.norm_q",),
    "single_blocks.#.norm.key_norm": (f"{_SINGLE}.attn.norm_k",),
    "final_layer.adaLN_modulation.1": ("transformer.norm_out.linear",),
    "final_layer.linear": ("transformer.proj_out",),
    "connector": ("connector",),  # of its one parameter outside a layer, the scale factor
    "connector.global_proj_out": ("connector.pooled_projection",),
    "connector.S.input_embedder": (f"{_REFINER}.proj_in",),
    "connector.S.t_embedder.mlp.0": (f"{_REFINER}.time_text_embed.timestep_embedder.linear_1",),
    "connector.S.t_embedder.mlp.2": (f"{_REFINER}.time_text_embed.timestep_embedder.linear_2",),
    "connector.S.c_embedder.linear_1": (f"{_REFINER}.time_text_embed.text_embedder.linear_1",),
    "connector.S.c_embedder.linear_2": (f"{_REFINER}.time_text_embed.text_embedder.linear_2",),
    **{
        f"connector.S.individual_token_refiner.blocks.#.{released}": _within(_REFINER_BLOCK, *ours)
        for released, ours in {
            "norm1": ("norm1",),
            "norm2": ("norm2",),
            "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "self_attn_proj": ("attn.to_out.0",),
            "mlp.fc1": ("ff.net.0.proj",),
            "mlp.fc2": ("ff.net.2",),
            "adaLN_modulation.1": ("norm_out.linear",),
        }.items()
    },
}

_THEIRS = {layer: released for released, layers in OURS.items() for layer in layers}
_FLAT = {re.compile(re.escape(LORA_PREFIX + name.replace(".", "_")).replace(r"\#", r"(\d+)")): name for name in OURS}


def numbered(layer: str) -> tuple[str, str]:
    """A layer's name with `#` for the block's number, and the number, empty where there is none."""
    found = re.search(r"(?<=blocks\.)\d+", layer)
    return (f"{layer[: found.start()]}#{layer[found.end() :]}", found[0]) if found else (layer, "")


def our_layers(released: str) -> tuple[str, ...]:
    """Our layers that the released layer holds, stacked in this order. KeyError: the released model has no such."""
    template, number = numbered(released)
    return tuple(layer.replace("#", number) for layer in OURS[template])


def released_layers(ours: Iterable[str]) -> list[str]:
    """The released layers that hold any of `ours`, each once. KeyError: one of them has no place there."""
    found = {}
    for layer in ours:
        template, number = numbered(layer)
        found[_THEIRS[template].replace("#", number)] = None
    return list(found)


def flat(released: str) -> str:
    """A released layer's name as LoRA files have it: `lora_unet_double_blocks_0_img_attn_qkv`."""
    return LORA_PREFIX + released.replace(".", "_")


def unflat(name: str) -> str:
    """What `flat` came from. KeyError: the released model has no such layer."""
    for pattern, released in _FLAT.items():
        if found := pattern.fullmatch(name):
            return released.replace("#", found[1]) if found.groups() else released
    raise KeyError(name)


def unstack(layers: tuple[str, ...], rows: torch.Tensor) -> list[torch.Tensor]:
    """The rows of a released matrix or bias as those of our `layers`, in order."""
    if layers == OURS["final_layer.adaLN_modulation.1"]:
        return [swap_halves(rows)]
    unit = rows.shape[0] // sum(map(share, layers))
    return list(rows.split([unit * share(layer) for layer in layers]) if len(layers) > 1 else [rows])


def stack(layers: tuple[str, ...], pieces: list[torch.Tensor]) -> torch.Tensor:
    """What `unstack` took apart."""
    if layers == OURS["final_layer.adaLN_modulation.1"]:
        return swap_halves(pieces[0])
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def share(layer: str) -> int:
    """How many times q's rows a layer of a stacked matrix takes: the MLP's first one is four times as wide."""
    return 4 if layer.endswith(".proj_mlp") else 1


def swap_halves(rows: torch.Tensor) -> torch.Tensor:
    """The last modulation is (shift, scale) in the released file and (scale, shift) in diffusers."""
    first, second = rows.chunk(2)
    return torch.cat([second, first])
