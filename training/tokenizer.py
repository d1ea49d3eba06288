"""The mini model's tokenizer: byte-level BPE over the world's own words, one token a digit.

Any text can be written in it (bytes are the floor); the world's words are one token each, which keeps two CPU cores
busy with pictures instead of spelling. The special tokens and their meaning are those of the released models.
"""

from collections.abc import Iterator
from itertools import product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.world import FAMILIES, TASKS, draw_sample

# In this order, so that their ids are 0, 1, 2 ...; `<im_patch>` is the placeholder of image features.
SPECIAL_TOKENS = ("<pad>", "<|im_start|>", "<|im_end|>", "<im_start>", "<im_end>", "<im_patch>", "<patch_start>",
                  "<patch_end>", "<patch_newline>", "<think>", "</think>", "<|endoftext|>")  # fmt: skip

# The chat form of the released models, with `<im_patch>` where a picture goes; generation starts with the thinking.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<im_patch>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Words of instructions for the editor and of the questions people ask in their own way, in English and Chinese.
PHRASES = (
    "make the turn into change colour color of to paint it recolour remove delete erase add put a an another next to "
    "above below left right move swap replace with resize larger smaller bigger shrink grow background outline only "
    "texture striped dotted keep leave digit number text then and also please two three four five six seven eight nine "
    "ten zero one how many what which where when who why is are there picture image photo drawing shape object thing "
    "white cyan rectangle oval pentagon hexagon line corner middle center centre top bottom side each every all none "
    "yes no true false system user assistant you it he she they this that these those can could would should do does "
    "Remove the. Move the. Add a. Replace the. Swap the. Make the. Change the. Turn the. Delete the. Paint the. "
    "把 将 改成 变成 换成 删除 去掉 移动 到 添加 增加 一个 两个 三个 四个 颜色 背景 交换 放大 缩小 左边 右边 上面 下面 "
    "只 留下 数字 文字 轮廓 条纹 然后 "
    "红色 橙色 黄色 绿色 蓝色 紫色 粉色 棕色 黑色 灰色 白色 圆形 正方形 三角形 星形 心形 菱形 十字 月亮 圆环 "
    "的 和 在 里 变 请 图 有 几个 什么 是 吗 哪 个 最"
)


def corpus(samples: int) -> Iterator[str]:
    """World text of every family, task and modality, without pictures being drawn."""
    for seed, (family, task) in product(range(samples), product(FAMILIES, TASKS)):
        if task != "question" and seed % 10:
            continue
        sample = draw_sample(seed, "train", family, "text", task)
        yield f"user\nassistant\nsystem\n{sample.prompt}\n{sample.reasoning}\n{sample.conclusion}"
    for _ in range(50):
        yield PHRASES


def build_tokenizer(vocab_size: int, samples: int = 400) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; deterministic. `vocab_size` counts special tokens and the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A digit is a token of its own (with the space before it): arithmetic is done digit by digit. A place on
            # the grid is one too: what is seen there and what is said of it meet in that token.
            pre_tokenizers.Split(Regex(r" ?r[1-4]c[1-4]| ?\d|\p{Han}|\n| ?[^\W\d\p{Han}]+| ?[^\s\w]|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(samples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<pad>")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
