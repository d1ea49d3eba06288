"""The refiner between the model that sees and the diffusion transformer (Step1X-Edit, arXiv 2504.17761, section 3).

The token refiner is diffusers' own, HunyuanVideo's; what is written here is the pooled vector beside it.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTokenRefiner
from torch import nn

SHARPNESS = 16.0

# The released model starts its pooled vector this small: the mean of the hidden states is large.
POOLED_SCALE = 0.09


class EditConnector(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Turns hidden states of a language model into the text stream and the pooled vector of a Flux transformer.

    Args:
        in_channels: width of the hidden states.
        num_attention_heads, attention_head_dim: their product is the width of the text stream.
        num_layers: refiner blocks.
        mlp_ratio: width of a block's MLP over that of the stream.
        pooled_projection_dim: width of the pooled vector.
        sharpened: channels of the text stream that are pushed to 0 or 1, as ranges [first, end): what is said there is
            yes or no, and a transformer that learnt from clean numbers takes a small number for a small change. None
            in Step1X-Edit.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["HunyuanVideoIndividualTokenRefinerBlock"]
    _skip_layerwise_casting_patterns = ["norm", "time_text_embed", "scale_factor"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3584,
        num_attention_heads: int = 32,
        attention_head_dim: int = 128,
        num_layers: int = 2,
        mlp_ratio: float = 4.0,
        pooled_projection_dim: int = 768,
        sharpened: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        self.token_refiner = HunyuanVideoTokenRefiner(
            in_channels, num_attention_heads, attention_head_dim, num_layers, mlp_ratio
        )
        self.pooled_projection = nn.Linear(in_channels, pooled_projection_dim)
        self.scale_factor = nn.Parameter(torch.full((1,), POOLED_SCALE - 1.0))
        width = num_attention_heads * attention_head_dim
        for first, end in sharpened:
            if not 0 <= first < end <= width:
                raise ValueError(f"sharpened names the channels {first} to {end}; the text stream has {width}.")

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One evaluation; it depends on the time, so a schedule of n steps has n of them.

        Args:
            hidden_states: (batch, tokens, in_channels).
            timestep: (batch,), the noise level from 0 (a picture) to 1 (noise).
            attention_mask: (batch, tokens), 1 where a token counts and 0 where it is padding; None where all count.

        Returns:
            `encoder_hidden_states` (batch, tokens, width) and `pooled_projections` (batch, pooled_projection_dim).
            All padding tokens of a row come out alike.
        """
        encoder_hidden_states, pooled_projections = self.refine(hidden_states, timestep, attention_mask)
        return self.sharpen(encoder_hidden_states), pooled_projections

    def refine(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same before anything is sharpened, which is easier to learn."""
        encoder_hidden_states = self.token_refiner(hidden_states, timestep * 1000, attention_mask)
        if attention_mask is None:
            mean = hidden_states.mean(1)
        else:
            counted = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
            mean = (hidden_states * counted).sum(1) / counted.sum(1)
        return encoder_hidden_states, self.pooled_projection(mean * (1 + self.scale_factor))

    def sharpen(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """A steep logistic curve through the middle between 0 and 1, in the `sharpened` channels."""
        if not self.config.sharpened:
            return encoder_hidden_states
        sharp = torch.zeros(encoder_hidden_states.shape[-1], dtype=torch.bool, device=encoder_hidden_states.device)
        for first, end in self.config.sharpened:
            sharp[first:end] = True
        pushed = torch.sigmoid(SHARPNESS * (encoder_hidden_states - 0.5))
        return torch.where(sharp, pushed, encoder_hidden_states)
