"""The rollout engine: it says what `generate` says, from one copy of each prompt, whatever is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vlm import inputs_of, make_config, make_model, make_processor, noise, user

from vlm.answering import ModelError
from vlm.prefix_attention import SharedPrefixCache
from vlm.rollout import Rollout
from vlm.sampling import Sampling, SamplingError, derive_seed

PICTURE = noise(32, 32)
ROWS = [
    user(PICTURE, "what?"),
    user("no picture"),
    user(noise(40, 30, 1), "and", noise(90, 30, 2), "this?"),
    user("a longer question without any picture, so that the batch is ragged"),
]
GREEDY = Sampling(temperature=0, max_tokens=20)


@pytest.fixture(scope="module", params=["qwen3", "llama", "step3p5"])
def parts(request):
    config = make_config(request.param)
    return make_model(config), make_processor(config, crop_size=16)


@pytest.fixture(scope="module")
def qwen():
    config = make_config()
    return make_model(config), make_processor(config, crop_size=16)


def greedy_of_generate(model, processor, conversation, tokens=20):
    inputs = inputs_of(processor, conversation)
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()


def teacher_forced(model, processor, conversation, tokens):
    """(tokens,) log-probabilities: one pass over the prompt, one over the whole answer.

    Two, because a sampled `<im_patch>` is a token like any other, and in one pass it would ask for a picture.
    """
    with torch.no_grad():
        prompt = model(**inputs_of(processor, conversation), use_cache=True)
        answer = model(input_ids=torch.tensor([tokens]), past_key_values=prompt.past_key_values)
    logits = torch.cat([prompt.logits[0, -1:], answer.logits[0, :-1]])
    return torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


def test_greedy_is_what_generate_says_prompt_by_prompt(parts):
    model, processor = parts
    together = Rollout(model, processor).generate(ROWS, GREEDY, n=2)
    for conversation, samples in zip(ROWS, together, strict=True):
        expected = greedy_of_generate(model, processor, conversation)
        assert [list(sample.tokens) for sample in samples] == [expected, expected]


def test_logprobs_are_those_of_a_teacher_forced_pass(parts):
    model, processor = parts
    together = Rollout(model, processor).generate(ROWS, Sampling(max_tokens=24), n=3)
    for conversation, samples in zip(ROWS, together, strict=True):
        for sample in samples:
            expected = teacher_forced(model, processor, conversation, list(sample.tokens))
            assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=1e-4)


def test_a_sample_does_not_depend_on_its_batch(parts):
    model, processor = parts
    seeds = [[derive_seed(7, i, j) for j in range(4)] for i in range(len(ROWS))]
    sampling = Sampling(max_tokens=24)
    whole = Rollout(model, processor).generate(ROWS, sampling, n=4, seeds=seeds)
    few = Rollout(model, processor, max_rows=3).generate(ROWS, sampling, n=4, seeds=seeds)
    backwards = Rollout(model, processor).generate(ROWS[::-1], sampling, n=4, seeds=[s[::-1] for s in seeds[::-1]])
    alone = [
        Rollout(model, processor).generate([row], sampling, seeds=[[own[0]]])[0][0]
        for row, own in zip(ROWS, seeds, strict=True)
    ]
    tokens = [[s.tokens for s in row] for row in whole]
    assert tokens == [[s.tokens for s in row] for row in few]
    assert tokens == [[s.tokens for s in row[::-1]] for row in backwards[::-1]]
    assert [row[0] for row in tokens] == [s.tokens for s in alone]
    assert len({t for row in tokens for t in row}) > len(ROWS), "sixteen seeds say different things"


def test_pictures_and_prompts_are_computed_once(qwen, monkeypatch):
    model, processor = qwen
    engine = Rollout(model, processor)
    views, reads = [], []
    encoder, decoder = model.model.vision_model, model.model.language_model
    see, read = encoder.forward, decoder.forward
    monkeypatch.setattr(encoder, "forward", lambda pixels, **k: (views.append(len(pixels)), see(pixels, **k))[1])
    monkeypatch.setattr(decoder, "forward", lambda *a, **k: (reads.append(1), read(*a, **k))[1])
    prompts = [user(PICTURE, "what?"), user(PICTURE, "where?"), user(PICTURE.copy(), "what?")]
    engine.generate(prompts, Sampling(max_tokens=4), n=8)
    assert views == [1, 4], "the view and the four crops of the picture, whatever it is asked"
    assert len(reads) == 2, "the third prompt is the first one"


def test_rows_leave_and_others_take_their_place(qwen):
    model, processor = qwen
    engine = Rollout(model, processor, max_rows=4)
    lengths = [1, 9, 3, 14, 2, 6, 1, 11, 5, 8]
    rows = [
        engine.submit(ROWS[i % 3], Sampling(max_tokens=n, seed=i, stop_token_ids=()))
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    widths = []
    while engine.step():
        widths.append(len(engine._active))
    assert max(widths) <= 4 and all(row.sample for row in rows)
    assert all(len(r.sample.tokens) <= n for r, n in zip(rows, lengths, strict=True))
    # Ideal packing of these lengths on four places is 15 steps; one prompt after another would take 60.
    assert len(widths) <= 22
    assert engine._cache.rows == 0 and not engine._prompts, "nothing is left behind"


def test_the_token_budget_holds_and_counts_a_prompt_once(qwen):
    model, processor = qwen
    prompt = inputs_of(processor, ROWS[1])["input_ids"].shape[1]
    engine = Rollout(model, processor, token_budget=prompt + 3 * 10)
    rows = [engine.submit(ROWS[1], Sampling(max_tokens=10, seed=i)) for i in range(7)]
    most = 0
    while engine.step():
        assert engine._resident() <= prompt + 30
        most = max(most, len(engine._active))
    assert most == 3 and all(row.sample for row in rows)
    with pytest.raises(ModelError, match="token budget"):
        engine.submit(ROWS[1], Sampling(max_tokens=31))


def test_a_prompt_is_stored_once_for_all_its_samples(qwen):
    model, processor = qwen
    long = user("x" * 200)

    def stored(n):
        engine = Rollout(model, processor)
        for i in range(n):
            engine.submit(long, Sampling(max_tokens=8, seed=i, stop_token_ids=()))
        engine.step()
        engine.step()
        return engine.cache_bytes

    one, many = stored(1), stored(16)
    assert many - one < 15 * one / 3, "sixteen samples add their own tokens, not the prompt's"


@pytest.mark.parametrize("finish", ["stop", "length", "cancelled"])
def test_how_a_sample_ends(qwen, finish):
    model, processor = qwen
    engine = Rollout(model, processor)
    expected = list(greedy_of_generate(model, processor, ROWS[0]))
    third = expected[2]
    first_at = expected.index(third)
    row = engine.submit(
        ROWS[0],
        Sampling(temperature=0, max_tokens=5, stop_token_ids=(third,) if finish == "stop" else ()),
    )
    if finish == "cancelled":
        engine.step()
        row.cancel()
    while engine.step():
        pass
    assert row.sample.finish == finish
    wanted = {"stop": first_at + 1, "length": 5, "cancelled": 2}[finish]
    assert list(row.sample.tokens) == expected[:wanted]


def test_a_stop_string_ends_the_text_before_it_and_is_never_streamed(qwen):
    model, processor = qwen
    whole = Rollout(model, processor).generate([ROWS[1]], Sampling(max_tokens=30, seed=3))[0][0].text
    stop = whole[6:9]
    pieces = []
    engine = Rollout(model, processor)
    seed = derive_seed(3, 0, 0)
    row = engine.submit(ROWS[1], Sampling(max_tokens=30, seed=seed, stop=(stop,)), on_text=pieces.append)
    while engine.step():
        pass
    assert row.sample.text == whole[: whole.index(stop)] == "".join(pieces)
    assert row.sample.finish == "stop"


def test_the_text_is_the_same_whether_or_not_somebody_reads_along(qwen):
    """Random tokens of this tokenizer are bytes, many of them halves of a character."""
    model, processor = qwen
    engine = Rollout(model, processor)
    pieces = [[] for _ in range(16)]
    watched = [
        engine.submit(ROWS[0], Sampling(max_tokens=40, seed=i), on_text=own.append) for i, own in enumerate(pieces)
    ]
    alone = [engine.submit(ROWS[0], Sampling(max_tokens=40, seed=i)) for i in range(16)]
    while engine.step():
        pass
    texts = [row.sample.text for row in alone]
    assert texts == [row.sample.text for row in watched] == ["".join(own) for own in pieces]
    assert len(set(texts)) == 16 and any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


@pytest.mark.parametrize("sampling", [Sampling(top_k=1, max_tokens=12), Sampling(top_p=1e-6, max_tokens=12)], ids=repr)
def test_the_narrowest_filter_is_greedy(qwen, sampling):
    model, processor = qwen
    sample = Rollout(model, processor).generate([ROWS[0]], sampling)[0][0]
    assert list(sample.tokens) == greedy_of_generate(model, processor, ROWS[0], 12)


def test_draws_follow_the_distribution(qwen):
    """First tokens of 4,000 seeds against the probabilities, at a temperature and inside top-k and top-p."""
    model, processor = qwen
    engine = Rollout(model, processor, max_rows=4000)
    sampling = Sampling(temperature=0.5, top_k=6, top_p=0.9, max_tokens=1)
    tokens = [s.tokens[0] for s in engine.generate([ROWS[1]], sampling, n=4000)[0]]
    with torch.no_grad():
        logits = model(**inputs_of(processor, ROWS[1])).logits[0, -1] / 0.5
    top = logits.topk(6)
    p = torch.softmax(top.values, -1)
    p = torch.where(p.cumsum(-1) - p < 0.9, p, 0)
    p /= p.sum()
    counts = torch.tensor([tokens.count(int(t)) for t in top.indices])
    assert counts.sum() == 4000
    assert ((counts / 4000 - p).abs() < 4 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


def test_new_weights_are_sampled_from_after_forget(qwen):
    config = make_config()
    model, processor = make_model(config), make_processor(config)
    engine = Rollout(model, processor)
    before = engine.generate([ROWS[1]], GREEDY)[0][0].tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    engine.forget()
    after = engine.generate([ROWS[1]], GREEDY)[0][0].tokens
    assert list(after) == greedy_of_generate(model, processor, ROWS[1]) and after != before


def test_the_model_itself_is_left_as_it_was(qwen):
    model, processor = qwen
    implementation = model.config.text_config._attn_implementation
    engine = Rollout(model, processor)
    assert model.config.text_config._attn_implementation == implementation
    own = dict(model.model.language_model.named_parameters())
    assert all(own[name] is p for name, p in engine._decoder.named_parameters()), "the same tensors"


def test_bad_input_is_refused_at_once(qwen):
    model, processor = qwen
    engine = Rollout(model, processor)
    with pytest.raises(ModelError, match="the model reads at most 512"):
        engine.generate([user("x" * 600)])
    with pytest.raises(ValueError, match="seeds"):
        engine.generate([ROWS[0]], n=2, seeds=[[1]])
    with pytest.raises(ValueError, match="max_rows is 0"):
        Rollout(model, processor, max_rows=0)


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"max_tokens": 0}, {"stop": "x"},
               {"stop": ("",)}, {"temperature": float("nan")}], ids=str,
)  # fmt: skip
def test_sampling_out_of_range(values):
    with pytest.raises(SamplingError, match=next(iter(values))):
        Sampling(**values)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_shared_attention_is_attention_over_both_parts_joined(data):
    """Any prompts, rows, own lengths, windows, softcaps and sinks, against the plain formula row by row."""
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    kv_heads, share, width = data.draw(st.sampled_from([(1, 1, 4), (2, 2, 8), (2, 3, 4)]))
    prompt_lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    slots = data.draw(st.lists(st.integers(0, len(prompt_lengths) - 1), min_size=1, max_size=6))
    steps = data.draw(st.integers(1, 6))
    window = data.draw(st.sampled_from([None, 1, 3, 7]))
    softcap = data.draw(st.sampled_from([None, 2.0]))
    sinks = data.draw(st.sampled_from([None, torch.randn(kv_heads * share)]))

    from transformers import DynamicCache

    cache = SharedPrefixCache(torch.device("cpu"))
    prompts = []
    for slot, length in enumerate(prompt_lengths):
        filled = DynamicCache()
        prompts.append([torch.randn(1, kv_heads, length, width) for _ in range(2)])
        filled.update(*prompts[-1], 0)
        cache.put_prompt(slot, filled)
    # Rows come at different times, so their own lengths differ; and some leave.
    rows, own = [], []
    for step in range(steps):
        arriving = [s for i, s in enumerate(slots) if i % steps == step or (steps == 1)]
        cache.add_rows(arriving)
        rows += arriving
        own += [[torch.zeros(kv_heads, 0, width)] * 2 for _ in arriving]
        if not rows:
            continue
        cache.begin_step()
        query = torch.randn(len(rows), kv_heads * share, 1, width)
        new = [torch.randn(len(rows), kv_heads, 1, width) for _ in range(2)]
        own = [[torch.cat([o, n[i]], 1) for o, n in zip(pair, new, strict=True)] for i, pair in enumerate(own)]
        keys, values = cache.update(*new, 0)
        got = cache.attend(0, query, keys, values, 0.3, window, softcap, sinks)
        for i, slot in enumerate(rows):
            k, v = (torch.cat([prompts[slot][j][0], own[i][j]], 1).repeat_interleave(share, 0) for j in range(2))
            scores = (query[i] @ k.mT)[:, 0] * 0.3
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            if window is not None:
                scores[:, : max(0, scores.shape[1] - window)] = -torch.inf
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None]], 1)
            weights = torch.softmax(scores, -1)[:, : k.shape[1]]
            assert torch.allclose(got[i, 0], (weights[:, None] @ v)[:, 0], atol=1e-5)
        if len(rows) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.integers(0, len(rows) - 1))
            kept = [i for i in range(len(rows)) if i != gone]
            if gone < len(kept):
                kept = [*kept[:gone], len(rows) - 1, *[i for i in kept[gone:] if i != len(rows) - 1]]
            cache.keep_rows(kept)
            rows, own = [rows[i] for i in kept], [own[i] for i in kept]
