"""What the OpenAI backend takes from an answer, and what a listener hears of it as it comes."""

import itertools
import json

import pytest
from fault_server import FaultServer, reset, say, status, truncated
from hypothesis import given
from hypothesis import strategies as st
from openai_calls import both, complete, nobody

from pacore.backends import Sampling
from pacore.openai_answers import Said, Told

pytestmark = pytest.mark.usefixtures("one_ssl_context")

# What comes back


@both
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_the_server_s_own_reasoning_is_kept_apart(on_text, name):
    with FaultServer([say("\n\n4 </think> ok", reasoning=" two and two ", name=name)]) as server:
        done = complete(server, on_text=on_text)
    assert (done.reasoning, done.text) == ("two and two", "4 </think> ok")


@both
def test_marked_reasoning_is_split_where_the_server_leaves_it(on_text):
    with FaultServer([say("<think>two and two</think>\n\n4")]) as server:
        done = complete(server, on_text=on_text)
    assert (done.reasoning, done.text, done.finish) == ("two and two", "4", "stop")


@both
@pytest.mark.parametrize(
    "reply, tokens",
    [
        (say("4"), (7, 3)),
        (say("four, no?", usage=None), (4, 3)),  # 14 and 9 bytes, four a token
        (say("4", usage=None, logprobs=(-0.5, -0.25)), (4, 2)),
    ],
)
def test_tokens_are_the_server_s_or_else_estimated(on_text, reply, tokens):
    with FaultServer([reply]) as server:
        done = complete(server, on_text=on_text)
    assert (done.prompt_tokens, done.completion_tokens) == tokens


def test_an_estimate_is_never_more_than_was_allowed():
    with FaultServer([say("word " * 100, usage=None, finish="length")]) as server:
        assert complete(server, Sampling(max_tokens=5), on_text=nobody).completion_tokens == 5


@both
def test_log_probabilities_and_the_finish_are_passed_on(on_text):
    with FaultServer([say("4", logprobs=(-0.5, -0.25), finish="length"), say("4")]) as server:
        done = complete(server, on_text=on_text, logprobs=True)
        assert done.logprobs == (-0.5, -0.25) and done.finish == "length" and 0 < done.seconds < 20
        assert complete(server, on_text=on_text, logprobs=True).logprobs is None


@both
def test_an_empty_message_counts_where_the_server_counts_its_tokens(on_text):
    with FaultServer([say("", usage=(7, 64), finish="length")]) as server:
        done = complete(server, on_text=on_text)
    assert (done.text, done.reasoning, done.completion_tokens, done.attempts) == ("", "", 64, 1)


def test_json_under_another_content_type_is_read():
    answer = json.dumps({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}).encode()
    with FaultServer([status(200, headers={"Content-Type": "text/plain"}, body=answer)]) as server:
        assert complete(server).text == "4"


# What a listener hears


class Heard(list):
    def __call__(self, kind, piece):
        self.append((kind, piece))

    def joined(self, kind) -> str:
        return "".join(piece for heard, piece in self if heard == kind)


def test_text_is_heard_as_it_comes_and_adds_up_to_the_completion():
    heard = Heard()
    with FaultServer([say(" <think> two\nand two </think>\n\nIt is 4. ")]) as server:
        done = complete(server, on_text=heard)
    assert len(heard) > 5
    assert (
        (heard.joined("reasoning"), heard.joined("text")) == (done.reasoning, done.text) == ("two\nand two", "It is 4.")
    )


@pytest.mark.parametrize("broken", [reset("It is 4, be"), truncated("It is 4, be")])
def test_a_second_try_goes_on_where_the_first_broke(broken):
    heard = Heard()
    with FaultServer([broken, say("It is 4, because.")]) as server:
        done = complete(server, on_text=heard)
    assert done.attempts == 2 and heard.joined("text") == done.text == "It is 4, because."


def test_a_second_try_that_says_something_else_is_silent():
    heard = Heard()
    with FaultServer([truncated("It is 5"), say("It is 4, because.")]) as server:
        done = complete(server, on_text=heard)
    assert done.text == "It is 4, because." and heard.joined("text") == "It is 5"


TEXTS = st.text(alphabet="ab <>/\nthink", max_size=12)


@given(
    before=st.sampled_from(["", " \n", "<think>", " <think>", "<thi"]),
    reasoning=TEXTS,
    close=st.sampled_from(["", "</think>", "</thi"]),
    answer=TEXTS,
    cuts=st.lists(st.integers(0, 50)),
    broken_at=st.integers(0, 50),
)
def test_however_a_text_is_cut_a_listener_hears_what_the_whole_text_says(
    before, reasoning, close, answer, cuts, broken_at
):
    from vlm.reasoning import split_reasoning

    text = before + reasoning + close + answer
    heard = Heard()
    told = Told(heard)
    bounds = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    for tried in (pieces[:broken_at], pieces):
        said = Said(told.restart())
        for piece in tried:
            said.add({"choices": [{"delta": {"content": piece}}]})
    want = split_reasoning(text)
    assert said.split() == want
    # A mark that closes what was never opened makes reasoning of a text that was already heard.
    if text.count("</think>") == 0 or (text.lstrip().startswith("<think>") and text.count("</think>") == 1):
        assert (heard.joined("reasoning"), heard.joined("text")) == want
