"""Adapters for transformer and connector, in diffusers' layout and in the released one."""

from pathlib import Path

import torch
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from safetensors import SafetensorError

from edit.checkpoints import CheckpointError, lora_to_ours, lora_to_released
from edit.released_names import LORA_PREFIX

COMPONENTS = ["transformer", "connector"]


class EditLoraMixin(LoraBaseMixin):
    """`load_lora_weights`, `save_lora_weights`, `fuse_lora` and the rest of diffusers' adapter calls."""

    _lora_loadable_modules = COMPONENTS

    @classmethod
    def lora_state_dict(
        cls, source: str | Path | dict[str, torch.Tensor], **hub
    ) -> tuple[dict[str, torch.Tensor], dict | None]:
        """(state dict in diffusers' names, adapter metadata or None), from either layout.

        Args:
            source: a folder with a LoRA in it, a `.safetensors` file, a hub id, or the state dict itself.
            hub: `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only` and the like.

        Raises:
            CheckpointError: nothing there, not safetensors, or not a LoRA of this model.
        """
        options = dict.fromkeys(
            ["weight_name", "local_files_only", "cache_dir", "force_download", "proxies", "token", "revision"]
        )
        unknown = sorted(hub.keys() - options.keys() - {"subfolder"})
        if unknown:
            raise TypeError(f"load_lora_weights has no argument {unknown[0]!r}.")
        source = str(source) if isinstance(source, Path) else source
        try:
            state, metadata = _fetch_state_dict(
                source,
                use_safetensors=True,
                user_agent={},
                allow_pickle=False,
                **{"subfolder": None, **options, **hub},
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"there is no LoRA to read at {str(source)!r} ({str(error).splitlines()[0][:160]}); give a "
                f".safetensors file or a folder with one."
            ) from error
        if any(name.startswith(LORA_PREFIX) for name in state):
            state = lora_to_ours(state)
        if not any(name.startswith(f"{part}.") and ".lora_" in name for name in state for part in COMPONENTS):
            raise CheckpointError(
                f"no weight of the LoRA belongs to {' or '.join(COMPONENTS)}; use one trained for this editor."
            )
        return state, metadata

    def load_lora_weights(
        self, source: str | Path | dict[str, torch.Tensor], adapter_name: str | None = None, **hub
    ) -> None:
        """Adds the adapter to transformer and connector, whichever it holds; see `lora_state_dict`."""
        state, metadata = self.lora_state_dict(source, **hub)
        for name in COMPONENTS:
            if any(key.startswith(f"{name}.") for key in state):
                getattr(self, name).load_lora_adapter(
                    state,
                    prefix=name,
                    network_alphas=None,
                    adapter_name=adapter_name,
                    metadata=metadata,
                    _pipeline=self,
                )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        connector_lora_layers: dict[str, torch.Tensor] | None = None,
        transformer_lora_adapter_metadata: dict | None = None,
        connector_lora_adapter_metadata: dict | None = None,
        weight_name: str | None = None,
        layout: str = "diffusers",
    ) -> None:
        """Writes one `.safetensors` file.

        Args:
            transformer_lora_layers, connector_lora_layers: of `peft.get_peft_model_state_dict(component)`.
            transformer_lora_adapter_metadata, connector_lora_adapter_metadata: of
                `component.peft_config["default"].to_dict()`; needed where lora_alpha is not the rank.
            layout: `diffusers`, or `released` for the names of Step1X-Edit's own LoRA files.
        """
        layers = {"transformer": transformer_lora_layers, "connector": connector_lora_layers}
        layers = {name: state for name, state in layers.items() if state}
        metadata = {"transformer": transformer_lora_adapter_metadata, "connector": connector_lora_adapter_metadata}
        if not layers:
            raise ValueError("there is nothing to save; pass transformer_lora_layers or connector_lora_layers.")
        if layout == "diffusers":
            cls._save_lora_weights(str(save_directory), layers, metadata, weight_name=weight_name)
        elif layout == "released":
            state = {}
            for name, own in layers.items():
                config = metadata[name] or {}
                scale = config.get("lora_alpha", 1) / config.get("r", 1)
                for key, value in cls.pack_weights(own, name).items():
                    state[key] = value * scale if ".lora_B." in key else value
            cls.write_lora_layers(lora_to_released(state), str(save_directory), True, weight_name, None, True)
        else:
            raise ValueError(f"layout is {layout!r}; use 'diffusers' or 'released'.")

    def fuse_lora(self, components: list[str] = COMPONENTS, **kwargs) -> None:
        super().fuse_lora(components=components, **kwargs)

    def unfuse_lora(self, components: list[str] = COMPONENTS, **kwargs) -> None:
        super().unfuse_lora(components=components, **kwargs)
