"""Released names and ours, both ways, for checkpoints of many shapes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vlm import inputs_of, make_config, make_model, make_processor, make_tokenizer, noise, user
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Step3p7Config,
    Step3p7ForConditionalGeneration,
)

from vlm import Step3VLConfig, Step3VLForConditionalGeneration, Step3VLModel, Step3VLProcessor

SHAPES = {
    "odd layers": {"vision": {"layers": 3, "heads": 3, "width": 24}, "text": {"num_hidden_layers": 5}},
    "tied head": {"text": {"tie_word_embeddings": True}},
    "projector with a bias": {"projector_bias": True},
    "odd grid": {"vision": {"image_size": 35, "patch_size": 5, "mlp_ratio": 8960 / 1536}},
    "llama": {"decoder": "llama"},
    "mixture of experts": {"decoder": "step3p5"},
}

ENCODER_NAMES = [
    "conv1.weight",
    "positional_embedding",
    "ln_pre.weight",
    "ln_pre.bias",
    "vit_downsampler1.weight",
    "vit_downsampler1.bias",
    "vit_downsampler2.weight",
    "vit_downsampler2.bias",
]
BLOCK_NAMES = [
    "ln_1.weight",
    "ln_1.bias",
    "ln_2.weight",
    "ln_2.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ls_1.gamma",
    "ls_2.gamma",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
]


def released(model, folder, **kwargs):
    model.save_pretrained(folder, layout="released", **kwargs)
    return folder


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_through_the_released_layout_is_exact(shape, tmp_path):
    model = make_model(make_config(**SHAPES[shape]))
    loaded, report = Step3VLForConditionalGeneration.from_pretrained(
        released(model, tmp_path), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_weights(model, loaded)
    # And once more, from a model that only ever saw the released names.
    first = load_file(tmp_path / "model.safetensors")
    again = load_file(released(loaded, tmp_path / "again") / "model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shape", ["odd layers", "tied head"])
def test_the_released_names_are_those_of_the_reference(shape, tmp_path):
    config = make_config(**SHAPES[shape])
    names = set(load_file(released(make_model(config), tmp_path) / "model.safetensors"))
    encoder = {f"vision_model.{name}" for name in ENCODER_NAMES}
    for layer in range(config.vision_config.num_hidden_layers):
        encoder |= {f"vision_model.transformer.resblocks.{layer}.{name}" for name in BLOCK_NAMES}
    rest = {name for name in names if not name.startswith("vision_model.")}
    assert names - rest == encoder
    assert "vit_large_projector.weight" in rest
    assert ("lm_head.weight" in rest) is not config.tie_word_embeddings
    decoder = {name for name in rest if name.startswith("model.")}
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_norm.weight"} <= decoder
    assert rest - decoder <= {"vit_large_projector.weight", "lm_head.weight"}


def test_the_mixture_of_experts_has_the_names_of_step_3_7(tmp_path):
    names = load_file(released(make_model(make_config("step3p5")), tmp_path) / "model.safetensors")
    layer = "model.layers.1"
    shapes = {
        f"{layer}.moe.gate.weight": (4, 48),
        f"{layer}.moe.router_bias": (4,),
        f"{layer}.moe.gate_proj.weight": (4, 24, 48),
        f"{layer}.moe.up_proj.weight": (4, 24, 48),
        f"{layer}.moe.down_proj.weight": (4, 48, 24),
        f"{layer}.share_expert.up_proj.weight": (24, 48),
        f"{layer}.self_attn.g_proj.weight": (6, 48),
    }
    assert {name: tuple(names[name].shape) for name in shapes if name in names} == shapes


def test_transformers_own_step_3_7_reads_and_writes_as_before(tmp_path):
    """Its decoder's names are registered once more for this model; applied twice they would do harm."""
    config = make_config("step3p5")
    theirs = Step3p7Config(
        vision_config=config.vision_config.to_dict(), text_config=config.text_config.to_dict(), image_token_id=5
    )
    torch.manual_seed(0)
    model = Step3p7ForConditionalGeneration(theirs)
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    ours = set(load_file(released(make_model(config), tmp_path / "ours") / "model.safetensors"))
    assert names == ours
    loaded, report = Step3p7ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_weights(model, loaded)


def test_the_encoder_stacks_q_k_v_and_interleaves_the_rotary_pairs(tmp_path):
    model = make_model()
    stacked = load_file(released(model, tmp_path) / "model.safetensors")[
        "vision_model.transformer.resblocks.0.attn.in_proj_bias"
    ]
    attention = model.model.vision_model.layers[0].self_attn
    heads, half = 2, 8
    for part, projection in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        ours = projection.bias.detach().view(heads, 2 * half)
        theirs = stacked[part * 32 : (part + 1) * 32].view(heads, 2 * half)
        if part < 2:  # a rotary pair: neighbours there, half a head apart here
            assert torch.equal(theirs[:, 0::2], ours[:, :half]) and torch.equal(theirs[:, 1::2], ours[:, half:])
        else:
            assert torch.equal(theirs, ours)


def test_the_released_config_has_the_keys_vllm_reads(tmp_path):
    config = make_config("llama")
    values = json.loads((released(make_model(config), tmp_path) / "config.json").read_text())
    assert values["architectures"] == ["StepVLForConditionalGeneration"]
    assert values["text_config"]["architectures"] == ["LlamaForCausalLM"]
    vision = values["vision_config"]
    assert (vision["width"], vision["layers"], vision["heads"]) == (32, 2, 2)
    assert (vision["image_size"], vision["patch_size"], vision["mlp_ratio"]) == (32, 4, 2.0)
    switches = {key: vision[key] for key in vision if key.startswith("use_")}
    assert switches == {
        "use_abs_posemb": True,
        "use_rope2d": True,
        "use_ln_pre": True,
        "use_ln_post": False,
        "use_cls_token": False,
    }
    assert vision["hidden_act"] == "quick_gelu" and vision["ls_init_value"] == 0.1 and vision["output_dim"] is None


def test_our_layout_is_the_parameters_own_names(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "own")
    assert set(load_file(tmp_path / "own" / "model.safetensors")) == set(model.state_dict())
    # Also where the model came from released names, which transformers by itself would write back.
    loaded = Step3VLForConditionalGeneration.from_pretrained(released(model, tmp_path / "released"))
    loaded.save_pretrained(tmp_path / "back")
    assert set(load_file(tmp_path / "back" / "model.safetensors")) == set(model.state_dict())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["model_type"] == "step3_vl" and config["architectures"] == ["Step3VLForConditionalGeneration"]


@pytest.mark.parametrize("layout", ["own", "released"])
def test_shards(layout, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, layout=layout, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_weights(model, Step3VLForConditionalGeneration.from_pretrained(tmp_path))


def test_a_checkpoint_without_a_head_and_a_model_without_one(tmp_path):
    model = make_model()
    released(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, report = Step3VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"lm_head.weight"}
    base = Step3VLModel.from_pretrained(tmp_path)
    assert_same_weights(model.model, base)
    base.save_pretrained(tmp_path / "base")
    assert_same_weights(base, Step3VLForConditionalGeneration.from_pretrained(tmp_path / "base").model)
    with pytest.raises(ValueError, match="has a head"):
        base.save_pretrained(tmp_path, layout="released")


def test_a_tied_head_stays_the_embedding(tmp_path):
    for layout in ("own", "released"):
        make_model(make_config(**SHAPES["tied head"])).save_pretrained(tmp_path / layout, layout=layout)
        loaded = Step3VLForConditionalGeneration.from_pretrained(tmp_path / layout)
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("model_type", ["step_robotics", "step3_vl"])
def test_auto_classes_read_a_hub_folder_without_its_remote_code(model_type, tmp_path, capfd):
    model = make_model()
    released(model, tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"model_type": model_type, "auto_map": {"AutoConfig": "configuration_step.StepConfig"}}
    del values["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "processing_step.Processor"}}')

    assert type(AutoConfig.from_pretrained(tmp_path)) is Step3VLConfig
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is Step3VLForConditionalGeneration
    assert_same_weights(model, loaded)
    assert_same_weights(model, Step3VLForConditionalGeneration.from_pretrained(tmp_path))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is Step3VLProcessor
    assert "model of type" not in capfd.readouterr().err
    loaded.save_pretrained(tmp_path / "own")
    saved = json.loads((tmp_path / "own" / "config.json").read_text())
    assert saved["model_type"] == "step3_vl" and "auto_map" not in saved


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"use_cls_token": True}, "use_cls_token"),
        ({"use_ln_post": True}, "use_ln_post"),
        ({"use_rope2d": False}, "use_rope2d"),
        ({"ls_init_value": None}, "ls_init_value"),
        ({"width": 36, "heads": 6}, "multiple of 4"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(vision, message):
    with pytest.raises(ValueError, match=message):
        make_config(vision=vision)


def test_a_decoder_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="'step3_text', which transformers does not know"):
        Step3VLConfig(text_config={"model_type": "step3_text"})


@pytest.mark.parametrize("decoder", ["qwen3", "llama", "step3p5"])
def test_the_config_round_trips(decoder, tmp_path):
    config = make_config(decoder)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize(
    ("top", "text", "tied"), [(None, True, True), (True, None, True), (None, None, False), (False, True, True)]
)
def test_where_tying_is_written(top, text, tied):
    values = make_config().text_config.to_dict()
    values.pop("tie_word_embeddings")
    values |= {} if text is None else {"tie_word_embeddings": text}
    config = Step3VLConfig(text_config=values, **({} if top is None else {"tie_word_embeddings": top}))
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is tied


def test_model_and_processor_saved_together_answer_alike(tmp_path):
    model, processor = make_model(), make_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    conversation = user(noise(70, 40), "What is it?")
    with torch.no_grad():
        before = model(**inputs_of(processor, conversation)).logits
        after = reloaded(**inputs_of(AutoProcessor.from_pretrained(tmp_path), conversation)).logits
    assert torch.equal(before, after)
