"""Pictures to latent tokens and back: sizes, packing, positions, and the scale in which latents are noised."""

import math

import torch
from diffusers import AutoencoderKL

# Latents go in squares, one token each; of Step1X-Edit this many a side.
PACKING = 2


def target_size(width: int, height: int, level: int, multiple: int) -> tuple[int, int]:
    """(width, height) in which a picture of this size is edited: about level² pixels, its aspect kept.

    Both sides are multiples of `multiple`, rounded down, at least one.
    """
    longer = math.ceil(math.sqrt(level * level * max(width, height) / min(width, height)))
    shorter = math.ceil(longer * min(width, height) / max(width, height))
    sides = [max(multiple, side // multiple * multiple) for side in (longer, shorter)]
    return (sides[0], sides[1]) if width > height else (sides[1], sides[0])


def vae_scale(vae: AutoencoderKL) -> int:
    """Pixels a side of one latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def token_channels(vae: AutoencoderKL, packing: int, reference_channels: bool) -> dict[str, int]:
    """`in_channels` and `out_channels` of a transformer for tokens of packing x packing latents of this autoencoder.

    With `reference_channels` those of the reference come in beside a token's own, see `flow.velocity`.
    """
    own = vae.config.latent_channels * packing**2
    return {"in_channels": own * (1 + reference_channels), "out_channels": own}


def pack(latents: torch.Tensor, packing: int = PACKING) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, height / packing * width / packing, channels * packing²), by rows."""
    batch, channels, height, width = latents.shape
    squares = latents.unflatten(2, (height // packing, packing)).unflatten(4, (width // packing, packing))
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * packing**2)


def unpack(tokens: torch.Tensor, height: int, width: int, packing: int = PACKING) -> torch.Tensor:
    """What `pack` took apart; `height` and `width` are those of the latents."""
    squares = tokens.unflatten(1, (height // packing, width // packing)).unflatten(3, (-1, packing, packing))
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def position_ids(height: int, width: int, index: int = 0, device=None, packing: int = PACKING) -> torch.Tensor:
    """(height / packing * width / packing, 3): `index`, row and column of every token of latents that large."""
    rows = torch.arange(height // packing, device=device)
    columns = torch.arange(width // packing, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    return torch.cat([torch.full_like(grid[:, :1], index), grid], 1).float()


def image_ids(height: int, width: int, reference_index: int = 0, device=None, packing: int = PACKING) -> torch.Tensor:
    """(tokens, 3), the noisy tokens' positions and then the reference's.

    `reference_index` is the first position of the reference: 0 in Step1X-Edit, where both halves share theirs, and 1
    from version 1.1 on.
    """
    noisy = position_ids(height, width, 0, device, packing)
    return torch.cat([noisy, position_ids(height, width, reference_index, device, packing)])


def text_ids(
    tokens: int, height: int, width: int, view_side: int = 0, device=None, packing: int = PACKING
) -> torch.Tensor:
    """(tokens, 3), the positions of the text stream beside latents that large: all at the origin, as in Step1X-Edit.

    With a `view_side` the tokens of the picture, behind their opening mark, stand at their places in it: what the model
    that sees knows of a place is then found there, by the heads that look at their own place.
    """
    ids = torch.zeros(tokens, 3, device=device)
    if view_side:
        sides = [
            (torch.arange(view_side, device=device) + 0.5) * (length // packing) / view_side - 0.5
            for length in (height, width)
        ]
        ids[1 : 1 + view_side**2, 1:] = torch.cartesian_prod(*sides)
    return ids


def normalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE's encoder gives them, (batch, channels, height, width), to the scale they are noised in."""
    mean, scale = _statistics(vae, latents)
    return (latents - mean) * scale


def denormalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The way back, ready for the VAE's decoder."""
    mean, scale = _statistics(vae, latents)
    return latents / scale + mean


def _statistics(vae: AutoencoderKL, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted and multiplied: the config's per-channel latents_mean and latents_std where it has them,
    then its shift_factor and scaling_factor, as in the FLUX VAE."""
    config = vae.config
    mean = torch.zeros(1, 1, 1, 1) if config.latents_mean is None else torch.tensor(config.latents_mean)[:, None, None]
    std = torch.ones(1, 1, 1, 1) if config.latents_std is None else torch.tensor(config.latents_std)[:, None, None]
    scale = (config.scaling_factor or 1.0) / std
    shift = (config.shift_factor or 0.0) * std
    return (mean + shift).to(latents), scale.to(latents)


def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """(batch, 3, height, width) in -1 to 1 to normalised latents, the most likely ones."""
    return normalise(vae, vae.encode(pixels.to(vae.dtype)).latent_dist.mode())


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents to (batch, 3, height, width) in about -1 to 1."""
    return vae.decode(denormalise(vae, latents.to(vae.dtype)), return_dict=False)[0]
