"""Pictures and chat to model inputs."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_vlm import inputs_of, make_config, make_processor, make_tokenizer, noise, user
from transformers import AutoProcessor

from vlm import Step3VLConfig, Step3VLImageProcessor, Step3VLProcessor
from vlm.views import cut_views, plan_views

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
WORD = {token: index for index, token in enumerate(make_tokenizer().convert_ids_to_tokens(range(9)))}


def test_a_picture_of_the_view_s_size_is_only_normalised():
    pictures = Step3VLImageProcessor.for_config(Step3VLConfig.preset("mini"))
    image = noise(128, 128)
    pixels = pictures(image)["pixel_values"]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert pixels.shape == (1, 3, 128, 128) and torch.equal(pixels[0], expected)
    assert not pictures.local_crops


def test_views_are_cut_as_the_released_processor_cuts_them():
    """Against the same steps spelled with torchvision, which is what vLLM's `Step3VisionProcessor` is made of."""
    from torchvision import transforms

    def view(side):
        resize = transforms.Resize((side, side), transforms.InterpolationMode.BILINEAR, antialias=True)
        return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD), resize])

    image = noise(1100, 700)
    found = Step3VLImageProcessor()(image)
    assert torch.allclose(found["pixel_values"][0], view(728)(image), atol=1e-5)
    scaled = image.resize((1008, 504), Image.Resampling.BILINEAR)
    plan = plan_views(1100, 700, 728, 504)
    assert (plan.cropped, plan.columns, plan.rows) == ((1008, 1008), 2, 2)
    scaled = image.resize(plan.cropped, Image.Resampling.BILINEAR)
    boxes = [(x, y, x + 504, y + 504) for y in (0, 504) for x in (0, 504)]
    for crop, box in zip(found["pixel_values_local"], boxes, strict=True):
        assert torch.allclose(crop, view(504)(scaled.crop(box)), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (20, 200), (100000, 3), (3100, 1000), (729, 30)])
def test_no_size_breaks_the_views(size):
    plan = plan_views(*size, 56, 28)
    view, crops = cut_views(Image.new("RGB", size), plan, 56, 28, MEAN, STD)
    assert view.shape == (3, 56, 56)
    assert crops.shape[0] == len(plan.newlines) == plan.columns * plan.rows
    assert torch.isfinite(view).all() and torch.isfinite(crops).all()


def test_a_ribbon_does_not_take_all_the_memory():
    with pytest.raises(ValueError, match="100000x100 pixels would take 1008 local crops, at most 128"):
        Step3VLImageProcessor()(Image.new("RGB", (100000, 100)))
    assert Step3VLImageProcessor()(Image.new("RGB", (100000, 3)))["num_local_patches"] == [36]
    assert Step3VLImageProcessor(local_crops=False)(Image.new("RGB", (100000, 100)))["num_local_patches"] == [0]


def test_thin_pictures_are_padded_with_black_below_and_beside():
    image = Image.new("RGB", (100, 10), "white")
    view, _ = cut_views(image, plan_views(100, 10, 100, None), 100, None, [0.0] * 3, [1.0] * 3)
    assert view[:, :10].min() == 1 and view[:, 10:].max() == 0


def test_the_token_layout():
    """Crops first, a newline after every row of them but the last, then the global view."""
    processor = make_processor(make_config(), crop_size=16)
    inputs = inputs_of(processor, user(noise(48, 32), "?"))  # 3 columns of 16, 2 rows; a crop has 1 token, a view 4
    crop = [WORD["<patch_start>"], WORD["<im_patch>"], WORD["<patch_end>"]]
    newline = [WORD["<patch_newline>"]]
    view = [WORD["<im_start>"], *[WORD["<im_patch>"]] * 4, WORD["<im_end>"]]
    ids = inputs["input_ids"][0].tolist()
    start = ids.index(WORD["<patch_start>"])
    assert ids[start:][: 7 * 3 + 4] == 3 * crop + newline + 3 * crop + view
    assert inputs["num_local_patches"].tolist() == [6]
    assert inputs["pixel_values_local"].shape == (6, 3, 16, 16)
    flags = [False, False, True, False, False, False]
    assert processor.image_processor.image_tokens(flags) == 6 * 3 + 1 + 6


def test_batches_with_one_none_and_two_pictures():
    processor = make_processor(crop_size=16)
    rows = [user(noise(32, 32), "a"), user("b"), user(noise(20, 20), "c", noise(64, 30))]
    inputs = inputs_of(processor, rows)
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    assert len(inputs["pixel_values_local"]) == inputs["num_local_patches"].sum()
    alone = [inputs_of(processor, row) for row in rows]
    assert [len(one.get("pixel_values", [])) for one in alone] == [1, 0, 2]
    for row, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        assert inputs["input_ids"][row, -length:].tolist() == one["input_ids"][0].tolist()
        assert inputs["attention_mask"][row].tolist() == [0] * (inputs["input_ids"].shape[1] - length) + [1] * length
    assert torch.equal(inputs["pixel_values"], torch.cat([alone[0]["pixel_values"], alone[2]["pixel_values"]]))


def test_text_alone():
    inputs = inputs_of(make_processor(), [{"role": "user", "content": "only words"}])
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_local_crops_can_be_left_out():
    conversation = user(noise(48, 32), "?")
    assert "pixel_values_local" not in inputs_of(make_processor(crop_size=16, local_crops=False), conversation)
    settings = {"local_crops": False}
    assert "pixel_values_local" not in inputs_of(make_processor(crop_size=16), conversation, processor_kwargs=settings)


@pytest.mark.parametrize("token", ["<im_patch>", "<im_start>", "<patch_newline>"])
@pytest.mark.parametrize("as_string", [False, True])
def test_a_picture_token_that_a_person_types_stays_text(token, as_string):
    processor = make_processor()
    typed = f"what is {token}?"
    conversation = [{"role": "user", "content": typed}] if as_string else user(noise(32, 32), typed)
    plain = [{"role": "user", "content": "x"}] if as_string else user(noise(32, 32), "x")
    ids, reference = (inputs_of(processor, turns)["input_ids"][0].tolist() for turns in (conversation, plain))
    assert ids.count(WORD[token]) == reference.count(WORD[token])
    assert typed in processor.decode(ids)
    # In a batch beside rows where nobody types it.
    batch = inputs_of(processor, [conversation, plain])
    assert batch["input_ids"][0].tolist() == ids
    with pytest.raises(ValueError, match="assistant mask"):
        inputs_of(processor, conversation, return_assistant_tokens_mask=True)


def test_a_prompt_with_more_marks_than_pictures_is_refused():
    processor = make_processor()
    with pytest.raises(ValueError, match="2 <im_patch> tokens and 1 images"):
        processor(text="<im_patch> and <im_patch>", images=[noise(8, 8)])
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text="<im_patch>")


def test_pictures_come_in_every_form_chat_clients_use(tmp_path):
    path = tmp_path / "picture.png"
    noise(32, 32).save(path)
    processor = make_processor()
    parts = [
        {"type": "image", "image": noise(32, 32)},
        {"type": "image", "image": str(path)},
        {"type": "image", "path": path},
        {"type": "image", "url": str(path)},
        {"type": "image_url", "image_url": {"url": str(path)}},
    ]
    turns = [[{"role": "user", "content": [part, {"type": "text", "text": "?"}]}] for part in parts]
    first, *others = (inputs_of(processor, turn) for turn in turns)
    for other in others:
        assert other["pixel_values"].equal(first["pixel_values"]) and other["input_ids"].equal(first["input_ids"])


def test_save_and_load(tmp_path):
    processor = make_processor(crop_size=16)
    processor.save_pretrained(tmp_path)
    for loaded in (Step3VLProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is Step3VLProcessor
        assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
        assert loaded.chat_template == processor.chat_template
        conversation = user(noise(48, 32), "?")
        ours, theirs = inputs_of(processor, conversation), inputs_of(loaded, conversation)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_padding_is_on_the_left_whatever_the_tokenizer_was_saved_with():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"
    processor = Step3VLProcessor.for_config(make_config(), tokenizer)
    mask = inputs_of(processor, [user("short"), user("a longer one")])["attention_mask"]
    assert mask[0, 0] == 0 and mask[:, -1].all()
    settings = {"padding_side": "right"}
    mask = inputs_of(processor, [user("short"), user("a longer one")], processor_kwargs=settings)["attention_mask"]
    assert mask[0, -1] == 0 and mask[:, 0].all()


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="is id 5, the model's image_token_id is 151679"):
        Step3VLProcessor.for_config(Step3VLConfig.preset("10b"), make_tokenizer())
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.add_special_tokens([])
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(ValueError, match="has no <im_patch> token"):
        Step3VLProcessor.for_config(make_config(), bare)
