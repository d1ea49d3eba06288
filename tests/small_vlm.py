"""Models of a few thousand weights and a tokenizer of bytes, made on the fly: what the tests of `vlm/` share."""

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlm import Step3VLConfig, Step3VLForConditionalGeneration, Step3VLProcessor
from vlm.processing import PICTURE_TOKENS

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ part.text if part.type == 'text' else '<im_patch>' }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

DECODERS = {
    "qwen3": {"model_type": "qwen3", "intermediate_size": 64, "head_dim": 16},
    "llama": {"model_type": "llama", "intermediate_size": 64, "head_dim": 16},
    "step3p5": {
        "model_type": "step3p5",
        "intermediate_size": 64,
        "head_dim": 16,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "sliding_window": 8,
        "num_sliding_attention_heads": 6,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "share_expert_dim": 24,
    },
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; `<im_patch>` is id 5 and `<|im_end|>` id 2, as in the tiny reference checkpoint."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<im_start>", "<im_end>", "<im_patch>"]
    special += [token for token in PICTURE_TOKENS if token not in special]
    vocabulary = {token: i for i, token in enumerate(special)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(byte, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=special[3:]
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special[3:]]})
    fast.chat_template = TEMPLATE
    return fast


def make_config(decoder: str = "qwen3", vision: dict | None = None, text: dict | None = None, **top) -> Step3VLConfig:
    """A 32x32-pixel view of 4 tokens and three decoder layers, changed by what is given."""
    vision_values = {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "patch_size": 4, "mlp_ratio": 2.0}
    text_values = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 270,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **DECODERS[decoder],
    }
    return Step3VLConfig(
        image_token_id=5,
        vision_config={**vision_values, **(vision or {})},
        text_config={**text_values, **(text or {})},
        **top,
    )


def make_model(config: Step3VLConfig | None = None, seed: int = 0, **kwargs) -> Step3VLForConditionalGeneration:
    """Every weight well away from its initial value, so that a weight left out or swapped changes the answer."""
    torch.manual_seed(seed)
    model = Step3VLForConditionalGeneration._from_config(config or make_config(), **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def make_processor(config: Step3VLConfig | None = None, **kwargs) -> Step3VLProcessor:
    return Step3VLProcessor.for_config(config or make_config(), make_tokenizer(), **kwargs)


def user(*parts) -> list[dict]:
    """A conversation of one turn: strings are text, everything else is a picture."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


def inputs_of(processor: Step3VLProcessor, conversation, **kwargs):
    """Model inputs for a conversation or a batch of them."""
    return processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **kwargs
    )


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which no two views are alike."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
