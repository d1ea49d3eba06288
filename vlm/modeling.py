"""The model that sees: perception encoder -> 16x-downsampling projector -> decoder (STEP3-VL, arXiv 2601.09668).

The encoder and the decoder are transformers' own modules; what is written here is how they are joined.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    GenerationMixin,
    PreTrainedModel,
    Step3p7TextConfig,
    Step3p7TextModel,
    Step3p7VisionModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from vlm.checkpoints import LAYOUTS, register_released_names, released_transforms, write_released_config
from vlm.configuration import PROJECTOR_STRIDE, Step3VLConfig

register_released_names()
# The sparse decoder of Step-3.5 and 3.7 is in transformers, but not in the map `AutoModel` reads.
AutoModel.register(Step3p7TextConfig, Step3p7TextModel, exist_ok=True)


@dataclass
class Step3VLModelOutputWithPast(BaseModelOutputWithPast):
    """Adds `image_hidden_states`: the projected features, one `(tokens, width)` tensor a picture."""

    image_hidden_states: list[torch.FloatTensor] | None = None


@dataclass
class Step3VLCausalLMOutputWithPast(ModelOutput):
    """`loss` (scalar), `logits` (batch, tokens, vocabulary), the cache, and the features of every picture."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor] | None = None
    attentions: tuple[torch.FloatTensor] | None = None
    image_hidden_states: list[torch.FloatTensor] | None = None


class Step3VLPreTrainedModel(PreTrainedModel):
    config: Step3VLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def save_pretrained(self, save_directory: str | os.PathLike, layout: str = "own", **kwargs):
        """Writes config and weights (safetensors).

        Args:
            layout: `own`, the model's parameter names; or `released`, the names and config of STEP3-VL-10B's
                repository, which vLLM's StepVL class loads. `from_pretrained` reads either.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; use one of {', '.join(map(repr, LAYOUTS))}.")
        if layout == "released":
            if not self.can_generate():
                raise ValueError("the released layout has a head; save a Step3VLForConditionalGeneration.")
            # What `from_pretrained` left here covers only the names it met, which may all have been ours.
            self._weight_conversions = released_transforms(self)
        kwargs.setdefault("save_original_format", layout == "released")
        super().save_pretrained(save_directory, **kwargs)
        if layout == "released" and kwargs.get("is_main_process", True):
            write_released_config(save_directory, self.config)


class Step3VLModel(Step3VLPreTrainedModel):
    """Encoder, projector and decoder without the language head."""

    def __init__(self, config: Step3VLConfig):
        super().__init__(config)
        self.vision_model = Step3p7VisionModel(config.vision_config)
        self.multi_modal_projector = nn.Linear(
            # The two convolutions double the width each time they halve the grid.
            config.vision_config.hidden_size * PROJECTOR_STRIDE,
            config.text_config.hidden_size,
            bias=config.projector_bias,
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        pixel_values_local: torch.FloatTensor | None = None,
        num_local_patches: list[int] | torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encodes and projects every view.

        Args:
            pixel_values: (pictures, 3, height, width), the global views, normalised.
            pixel_values_local: (crops, 3, height, width), the local crops of all pictures one after another.
            num_local_patches: (pictures,), how many of the crops belong to each picture.

        Returns:
            `pooler_output`: a list with one (tokens, width) tensor a picture; the crops come before the global view,
            as the released token layout has them.
        """
        encoded = self.vision_model(pixel_values)
        merged = list(self.multi_modal_projector(encoded.last_hidden_state))
        if pixel_values_local is not None:
            counts = [0] * len(merged) if num_local_patches is None else [int(n) for n in num_local_patches]
            if len(counts) != len(merged) or sum(counts) != len(pixel_values_local):
                raise ValueError(
                    f"num_local_patches {counts} does not fit {len(merged)} pictures with {len(pixel_values_local)} "
                    f"local crops; pass one count a picture, summing to the number of crops."
                )
            crops = self.multi_modal_projector(self.vision_model(pixel_values_local).last_hidden_state)
            merged = [
                torch.cat([own.flatten(0, 1), view]) for own, view in zip(crops.split(counts), merged, strict=True)
            ]
        return BaseModelOutputWithPooling(last_hidden_state=encoded.last_hidden_state, pooler_output=merged)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_local: torch.FloatTensor | None = None,
        num_local_patches: list[int] | torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> Step3VLModelOutputWithPast:
        """One pass without the head.

        `mm_encoder_outputs["image"]` is what `get_image_features` returned, in place of `pixel_values`: `generate`
        encodes once and expands the features to the samples and beams of every row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and pixel_values is not None:
            encoded = self.get_image_features(pixel_values, pixel_values_local, num_local_patches, return_dict=True)
        image_features = None if encoded is None else encoded.pooler_output
        if image_features is not None:
            inputs_embeds = self._place(image_features, input_ids, inputs_embeds)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return Step3VLModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )

    def _place(
        self, image_features: list[torch.Tensor], input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor
    ) -> torch.Tensor:
        """(batch, tokens, width), the embeddings with the features of all pictures, in order, at the placeholders."""
        if input_ids is None:
            raise ValueError("pictures need input_ids: the placeholders in them say where a picture goes.")
        placeholders = input_ids == self.config.image_token_id
        flat = torch.cat(list(image_features)).to(inputs_embeds.device, inputs_embeds.dtype)
        # Counting waits for the device, and a compiled graph cannot wait.
        if not torch.compiler.is_compiling() and int(placeholders.sum()) != len(flat):
            raise ValueError(
                f"input_ids hold {int(placeholders.sum())} image placeholders (id {self.config.image_token_id}) "
                f"but the pictures give {len(flat)} features; build both with Step3VLProcessor."
            )
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), flat)


class Step3VLForConditionalGeneration(Step3VLPreTrainedModel, GenerationMixin):
    """The whole model with its language head; generates like any transformers model."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: Step3VLConfig):
        super().__init__(config)
        self.model = Step3VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See `Step3VLModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_local: torch.FloatTensor | None = None,
        num_local_patches: list[int] | torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> Step3VLCausalLMOutputWithPast:
        """One pass. `labels` (batch, tokens) are ids with -100 where no loss is taken; the shift happens inside.

        `logits_to_keep` may be a boolean (batch, tokens) mask: packed training takes only the rows it needs through
        the head, and the logits come flattened to (kept, vocabulary).
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_local=pixel_values_local,
            num_local_patches=num_local_patches,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return Step3VLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
