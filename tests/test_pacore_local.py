"""The local backend: the rollout engine behind the protocol, shared by all that ask at once."""

import asyncio

import pytest
from small_vlm import make_config, make_model, make_processor, noise, user

from pacore.backends import BackendError, Sampling
from pacore.coordination import Plan, solve
from pacore.local_backend import LocalBackend
from vlm.rollout import Rollout

QUESTION = user(noise(32, 32), "what?")


@pytest.fixture(scope="module")
def parts():
    config = make_config()
    return make_model(config), make_processor(config, crop_size=16)


@pytest.fixture
def backend(parts):
    made = LocalBackend(Rollout(*parts, max_rows=16), "small")
    yield made
    asyncio.run(made.close())


def complete(backend, conversation=QUESTION, on_text=None, **sampling):
    return backend.complete(conversation, Sampling(**{"max_tokens": 12, "seed": 1, **sampling}), on_text)


def test_a_completion_is_the_engines_sample(backend, parts):
    completion = asyncio.run(complete(backend))
    sample = Rollout(*parts).generate([QUESTION], Sampling(max_tokens=12), seeds=[[1]])[0][0]
    assert completion.logprobs == pytest.approx(sample.logprobs, abs=1e-4)
    assert completion.completion_tokens == len(sample.tokens) and completion.finish == sample.finish
    assert completion.prompt_tokens == sample.prompt_tokens
    assert completion.text == sample.text.strip() and completion.reasoning == ""


def test_calls_share_a_batch_and_do_not_change_each_other(backend):
    async def all_at_once():
        return await asyncio.gather(*(complete(backend, seed=i) for i in range(24)))

    together = asyncio.run(all_at_once())
    alone = [asyncio.run(complete(backend, seed=i)) for i in (0, 11, 23)]
    assert [together[i].text for i in (0, 11, 23)] == [c.text for c in alone]
    assert len({c.text for c in together}) > 12


def test_the_pieces_are_the_text(backend):
    pieces = []
    completion = asyncio.run(complete(backend, on_text=lambda kind, piece: pieces.append((kind, piece))))
    assert "".join(piece for kind, piece in pieces if kind == "text").strip() == completion.text


def test_a_cancelled_call_leaves_the_batch(backend):
    async def go():
        task = asyncio.create_task(complete(backend, max_tokens=None))
        while not backend._engine._active:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await complete(backend)
        assert all(row.sample for row in backend._engine._active), "nothing goes on behind it"
        return after

    assert asyncio.run(go()).completion_tokens


@pytest.mark.parametrize(
    ("conversation", "says"),
    [
        (user("x" * 600), "reads at most 512"),
        ([{"role": "user", "content": [{"type": "image", "image": "/no/such.png"}]}], "there is no file"),
        ([{"role": "user", "content": 5}], "cannot be read"),
    ],
    ids=["long", "picture", "form"],
)
def test_what_cannot_be_asked_fails_alone(backend, conversation, says):
    async def go():
        good = asyncio.create_task(complete(backend))
        with pytest.raises(BackendError, match=says):
            await complete(backend, conversation)
        return await good

    assert asyncio.run(go()).completion_tokens


def test_an_engine_that_breaks_fails_its_calls_and_goes_on(backend, monkeypatch):
    def broken():
        raise MemoryError("out of memory")

    monkeypatch.setattr(backend._engine, "step", broken)
    with pytest.raises(BackendError, match="out of memory"):
        asyncio.run(complete(backend))
    monkeypatch.undo()
    assert asyncio.run(complete(backend)).completion_tokens


def test_a_closed_backend_says_so(parts):
    backend = LocalBackend(Rollout(*parts), "small")
    asyncio.run(backend.close())
    with pytest.raises(BackendError, match="is closed"):
        asyncio.run(complete(backend))


def test_no_such_model():
    with pytest.raises(BackendError, match="no folder"):
        LocalBackend.load("/no/such/model!")


def test_rounds_over_the_model_give_the_same_answer_twice(backend):
    plan = Plan((4, 2), sampling=Sampling(max_tokens=8), seed=3)
    first, second = (asyncio.run(solve(backend, QUESTION, plan)) for _ in range(2))
    assert first.answer.text == second.answer.text and [len(r) for r in first.rounds] == [4, 2, 1]
    assert first.completion_tokens == second.completion_tokens > 7


def test_views_of_a_picture_differ_and_the_answer_still_comes(backend):
    outcome = asyncio.run(solve(backend, QUESTION, Plan((4,), sampling=Sampling(max_tokens=4), views=True)))
    assert outcome.answer.completion_tokens and not outcome.failures
