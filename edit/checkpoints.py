"""Released Step1X-Edit weights and ours: read, written, and LoRA files in the released layout (safetensors only)."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edit.configuration import released_vae_config
from edit.connector import EditConnector
from edit.released_names import flat, our_layers, released_layers, share, stack, unflat, unstack


class CheckpointError(ValueError):
    """The file is not what was asked for; the message is one line with the remedy."""


def load_released(
    path: str | Path,
    dtype: torch.dtype | None = None,
    axes: tuple[int, int, int] | None = None,
    connector_heads: int | None = None,
) -> tuple[EditConnector, FluxTransformer2DModel]:
    """The connector and the transformer of a released checkpoint, every size read from the tensors' shapes.

    Args:
        path: a `.safetensors` file, or a folder whose `.safetensors` files together are the checkpoint.
        dtype: of the weights; the file's own by default.
        axes: rotary dimensions of the three position axes. They leave no trace in the shapes: by default an eighth of
            a head (at least 8) for the first, the rest in halves, which is (16, 56, 56) at the released size.
        connector_heads: nor do these: by default heads of 128, but at least four of them.

    Returns:
        Both in evaluation mode, on the CPU.

    Raises:
        CheckpointError: no such file, not the released layout, or layers missing, unknown or of another shape.
    """
    ours = _to_ours(_read(Path(path)), path)
    connector, transformer = _sizes(ours, path, axes, connector_heads)
    with torch.device("meta"):
        models = EditConnector(**connector), FluxTransformer2DModel(**transformer)
    for name, model in zip(("connector", "transformer"), models, strict=True):
        own = {key.partition(".")[2]: value for key, value in ours.items() if key.startswith(f"{name}.")}
        _fill(model, own, name, path, dtype)
    return models


def load_released_vae(path: str | Path, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The FLUX VAE beside the released checkpoint (`encoder.down.0.block.0.…`), sizes read from the shapes.

    Raises:
        CheckpointError: no such file, or not such a VAE.
    """
    weights = _read(Path(path))
    try:
        levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
        widths = tuple(len(weights[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(levels))
        blocks = len({name.split(".")[4] for name in weights if name.startswith("encoder.down.0.block.")})
        channels = weights["decoder.conv_in.weight"].shape[1]
        with torch.device("meta"):
            vae = AutoencoderKL(**released_vae_config(widths, blocks, channels))
        ours = convert_ldm_vae_checkpoint(weights, vae.config)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{str(path)!r} is no FLUX VAE ({error}); give the vae.safetensors beside it.") from error
    _fill(vae, ours, "vae", path, dtype)
    return vae


def save_released(path: str | Path, connector: EditConnector, transformer: FluxTransformer2DModel) -> None:
    """Writes one `.safetensors` file in the released names. Raises CheckpointError for a layer they do not have."""
    ours = {f"connector.{name}": tensor for name, tensor in connector.state_dict().items()}
    ours |= {f"transformer.{name}": tensor for name, tensor in transformer.state_dict().items()}
    released = {}
    for layer in _placed({name.rpartition(".")[0] for name in ours}, "save it with save_pretrained"):
        layers = our_layers(layer)
        for ending in ("weight", "bias", "scale_factor"):
            if f"{layers[0]}.{ending}" in ours:
                tensor = stack(layers, [ours[f"{name}.{ending}"].detach() for name in layers])
                released[f"{layer}.{_released_ending(layer, ending)}"] = tensor.cpu().contiguous()
    save_file(released, Path(path), metadata={"format": "pt"})


def lora_to_ours(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA in the released layout (`lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, `.lora_up.weight`,
    `.alpha`) as diffusers' state dict, `transformer.….lora_A.weight` and `connector.….lora_A.weight`.

    q, k and v of a stacked matrix get its `lora_down` each; `alpha` over the rank goes into `lora_B`.

    Raises:
        CheckpointError: a layer that the released model does not have, or half of a pair.
    """
    ours = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in released):
        try:
            layers = our_layers(unflat(name))
        except KeyError as error:
            raise CheckpointError(
                f"the LoRA has a layer {name!r}, which the released model lacks; use a LoRA trained for Step1X-Edit."
            ) from error
        down, up = released.get(f"{name}.lora_down.weight"), released.get(f"{name}.lora_up.weight")
        if down is None or up is None:
            raise CheckpointError(f"the LoRA holds half of {name!r}; it takes lora_down.weight and lora_up.weight.")
        rank = down.shape[0]
        scale = float(released.get(f"{name}.alpha", rank)) / rank
        for layer, piece in zip(layers, unstack(layers, up), strict=True):
            ours[f"{layer}.lora_A.weight"] = down.clone()
            ours[f"{layer}.lora_B.weight"] = piece * scale
    return ours


def lora_to_released(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back, from diffusers' state dict with its scale already in the weights.

    q, k and v have a `lora_A` each, so a stacked matrix takes the sum of their ranks and a block-diagonal `lora_up`.

    Raises:
        CheckpointError: a layer that the released layout does not have.
    """
    held = [name.removesuffix(".lora_A.weight") for name in ours if name.endswith(".lora_A.weight")]
    released = {}
    for name in _placed(held, "save it with save_lora_weights"):
        layers = our_layers(name)
        downs = {layer: ours[f"{layer}.lora_A.weight"] for layer in layers if layer in held}
        ups = {layer: ours[f"{layer}.lora_B.weight"] for layer in downs}
        rank = sum(len(down) for down in downs.values())
        some = next(iter(ups))
        unit = len(ups[some]) // share(some) if len(layers) > 1 else len(ups[some])
        before, pieces = 0, []
        for layer in layers:
            piece = ups[some].new_zeros(unit * (share(layer) if len(layers) > 1 else 1), rank)
            if layer in ups:
                own = ups[layer].shape[1]
                piece[:, before : before + own] = ups[layer]
                before += own
            pieces.append(piece)
        released[f"{flat(name)}.lora_down.weight"] = torch.cat(list(downs.values())).contiguous()
        released[f"{flat(name)}.lora_up.weight"] = stack(layers, pieces).contiguous()
        released[f"{flat(name)}.alpha"] = torch.tensor(float(rank))
    return released


def _placed(layers, remedy: str) -> list[str]:
    try:
        return released_layers(layers)
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]} has no place in the released layout; {remedy}.") from error


def _released_ending(layer: str, ending: str) -> str:
    """An RMS norm's weight is called its scale there."""
    return "scale" if layer.endswith(("query_norm", "key_norm")) else ending


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the file, or of the folder's files."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise CheckpointError(f"the folder {str(path)!r} has no *.safetensors file; give the released file or folder.")
    tensors = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"there is no file {str(file)!r}; check the path.")
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                if twice := next((name for name in names if name in tensors), None):
                    raise CheckpointError(
                        f"{file.name!r} holds {twice} once more; the folder has several checkpoints, give one file."
                    )
                tensors |= {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{str(file)!r} is not a readable safetensors file ({str(error)[:120]}); fetch it again, "
                f"and convert a pickled .pt or .ckpt with the tool it came from."
            ) from error
    return tensors


def _to_ours(released: dict[str, torch.Tensor], path: str | Path) -> dict[str, torch.Tensor]:
    ours = {}
    for name, tensor in released.items():
        layer, _, ending = name.rpartition(".")
        try:
            layers = our_layers(layer)
        except KeyError as error:
            raise CheckpointError(
                f"{str(path)!r} holds {name!r}, which the released Step1X-Edit lacks; give its own checkpoint file."
            ) from error
        ending = "weight" if ending == "scale" else ending
        for own, piece in zip(layers, unstack(layers, tensor), strict=True):
            # A piece of its own: tensors that share memory cannot be saved apart.
            ours[f"{own}.{ending}"] = piece.clone() if len(layers) > 1 else piece
    return ours


def _sizes(
    ours: dict[str, torch.Tensor], path: str | Path, axes: tuple[int, int, int] | None, connector_heads: int | None
) -> tuple[dict, dict]:
    """The configurations of connector and transformer."""

    def shape(name: str) -> torch.Size:
        if name not in ours:
            raise CheckpointError(f"{str(path)!r} lacks {name} (our name); give a complete Step1X-Edit checkpoint.")
        return ours[name].shape

    def blocks(prefix: str) -> int:
        return len({name.removeprefix(prefix).partition(".")[0] for name in ours if name.startswith(prefix)})

    width, channels = shape("transformer.x_embedder.weight")
    stream, in_channels = shape("connector.token_refiner.proj_in.weight")
    head = shape("transformer.transformer_blocks.0.attn.norm_q.weight")[0]
    first = max(8, head // 8)
    heads = connector_heads or stream // min(128, stream // 4)
    refiner = "connector.token_refiner.token_refiner.refiner_blocks."
    connector = {
        "in_channels": in_channels,
        "num_attention_heads": heads,
        "attention_head_dim": stream // heads,
        "num_layers": blocks(refiner),
        "mlp_ratio": shape(f"{refiner}0.ff.net.0.proj.weight")[0] / stream,
        "pooled_projection_dim": shape("connector.pooled_projection.weight")[0],
    }
    transformer = {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shape("transformer.proj_out.weight")[0],
        "num_layers": blocks("transformer.transformer_blocks."),
        "num_single_layers": blocks("transformer.single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shape("transformer.context_embedder.weight")[1],
        "pooled_projection_dim": connector["pooled_projection_dim"],
        "guidance_embeds": False,
        "axes_dims_rope": tuple(axes or (first, (head - first) // 2, (head - first) // 2)),
    }
    return connector, transformer


def _fill(
    model: ModelMixin, weights: dict[str, torch.Tensor], name: str, path: str | Path, dtype: torch.dtype | None
) -> None:
    expected = model.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights or key not in expected or weights[key].shape != expected[key].shape:
            found = tuple(weights[key].shape) if key in weights else "missing"
            wanted = tuple(expected[key].shape) if key in expected else "no such layer"
            raise CheckpointError(
                f"{str(path)!r} does not fit: {name}.{key} is {found}, expected {wanted}; give a complete checkpoint."
            )
    if dtype is not None:
        weights = {key: value.to(dtype) for key, value in weights.items()}
    model.load_state_dict(weights, assign=True)
    model.eval()
