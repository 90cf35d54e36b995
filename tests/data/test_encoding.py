"""Where a response begins and ends as tokens."""

from __future__ import annotations

import copy
from itertools import islice

import pytest

from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.data.encoding import (
    Encoded,
    EncodedPair,
    encode,
    encode_pairs,
    prompt_lengths,
)
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

ENDS = {"tiny": "<|end|>", "chatml": "<|im_end|>", "llama-3.1": "<|eot_id|>"}
MARKS = {
    "tiny": [],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama-3.1": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


@pytest.fixture(scope="module", params=ENDS)
def template(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(template):
    source = (CHAT_TEMPLATES / f"{template}.jinja").read_text()
    made = train_tokenizer(islice(arith.pretraining_documents(0), 300), 400, source)
    made.add_special_tokens({"additional_special_tokens": MARKS[template]})
    made.bos_token = "<|begin_of_text|>"
    made.eos_token = ENDS[template]
    return made


def row(question: str = "2 + 10?", answer: str = "12\n#### 12") -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def encoded(tokenizer, rows, max_length: int) -> list[Encoded]:
    """The rows, which messages name by their number."""
    return encode(tokenizer, rows, max_length, "row {}".format)


def whole(tokenizer, example: dict) -> list[int]:
    messages = example["prompt"] + example["completion"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ["12\n#### 12", "Ünïcode 🙂", " starts with a blank", "1"])
def test_the_response_begins_after_the_prompt(tokenizer, template, answer):
    (found,) = encoded(tokenizer, [row(answer=answer)], 200)
    prompt = tokenizer.apply_chat_template(
        row()["prompt"], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(found.prompt) == prompt
    text = answer.strip() if template == "llama-3.1" else answer
    assert tokenizer.decode(found.response).startswith(text)


def test_the_response_ends_with_the_end_of_its_turn(tokenizer, template):
    (found,) = encoded(tokenizer, [row()], 200)
    assert tokenizer.decode(found.response) == f"12\n#### 12{ENDS[template]}"
    assert found.response[-1] == tokenizer.eos_token_id


def test_the_system_turn_belongs_to_the_prompt(tokenizer):
    example = row()
    example["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    (found,) = encoded(tokenizer, [example], 200)
    assert "Be brief." in tokenizer.decode(found.prompt)
    assert "Be brief." not in tokenizer.decode(found.response)


def test_every_row_is_encoded_in_order(tokenizer, said):
    rows = [row(f"{n}?", str(n)) for n in range(5)]
    found = encoded(tokenizer, iter(rows), 200)
    for made, example in zip(found, rows, strict=True):
        assert made.ids == whole(tokenizer, example)[: len(made.ids)]
    assert said == []


def test_what_is_too_long_loses_its_end_with_a_warning(tokenizer, said):
    rows = [row(), row(answer="12 " * 100), row(answer="13 " * 100)]
    found = encoded(tokenizer, rows, 60)
    assert said == ["warning: 2 of 3 answers were cut at 60 tokens"]
    for made, example in zip(found[1:], rows[1:], strict=True):
        assert made.ids == whole(tokenizer, example)[:60]
        assert made.response


def test_what_just_fits_is_not_cut(tokenizer, said):
    (found,) = encoded(tokenizer, [row()], 200)
    length = len(whole(tokenizer, row()))
    assert encoded(tokenizer, [row()], length) == [found]
    assert said == []
    encoded(tokenizer, [row()], len(found.prompt + found.response) - 1)
    assert len(said) == 1


def test_a_prompt_that_fills_the_length_is_refused(tokenizer):
    (found,) = encoded(tokenizer, [row()], 200)
    length = len(found.prompt)
    assert len(encoded(tokenizer, [row()], length + 1)[0].response) == 1
    with pytest.raises(
        UserError, match=f"^row 1: the prompt has {length + 4} tokens and max_seq_length is"
    ):
        encoded(tokenizer, [row(), row(question="2 + 10?" + "7777")], length + 2)


def pair(chosen: str, rejected: str, question: str = "2 + 10?") -> dict:
    return {
        "prompt": row(question)["prompt"],
        "chosen": row(answer=chosen)["completion"],
        "rejected": row(answer=rejected)["completion"],
    }


def pairs(tokenizer, rows, max_length: int) -> list[EncodedPair]:
    return encode_pairs(tokenizer, rows, max_length, "row {}".format)


def test_a_pair_trains_the_tokens_that_sft_trains(tokenizer, said):
    (found,) = pairs(tokenizer, [pair("#### 12", "#### 13")], 200)
    chosen, rejected = encoded(tokenizer, [row(answer="#### 12"), row(answer="#### 13")], 200)
    assert found.prompt == chosen.prompt == rejected.prompt
    assert (found.chosen, found.rejected) == (chosen.response, rejected.response)
    assert said == []


def test_cut_answers_are_counted_and_must_still_differ(tokenizer, said):
    rows = [pair("#### 12 " + "1 " * 50, "#### 13"), pair("7 " * 50 + "8", "7 " * 50 + "9")]
    room = len(pairs(tokenizer, rows[:1], 300)[0].prompt) + 20
    assert len(pairs(tokenizer, rows[:1], room)[0].chosen) == 20
    assert said == [f"warning: 1 of 2 answers were cut at {room} tokens"]
    with pytest.raises(
        UserError, match=f"row 1: chosen and rejected are the same in the first {room}"
    ):
        pairs(tokenizer, rows, room)


def test_a_prompt_of_a_pair_that_fills_the_length_is_refused(tokenizer):
    rows = [pair("12", "13"), pair("12", "13", question="2 + 10?" * 20)]
    for check in (encode_pairs, prompt_lengths):
        with pytest.raises(
            UserError, match=r"^row 1: the prompt has \d+ tokens and max_seq_length"
        ):
            check(tokenizer, rows, 60, "row {}".format)


def test_a_template_that_asks_otherwise_than_it_trains_is_said(tokenizer, said):
    thinks = "{%- if add_generation_prompt -%}{{- '<think>' -}}{%- endif -%}"
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template += thinks
    found = encoded(tokenizer, [row(), row("3 + 3?", "6")], 200)
    assert "<think>" not in tokenizer.decode(found[0].ids)
    (line,) = said
    assert line.startswith("warning: 2 of 2 answers are trained without '<think>'")


def test_a_template_that_hides_the_answer_or_moves_the_prompt_is_refused(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    with pytest.raises(UserError, match="row 0: the chat template leaves the answer out"):
        encoded(changed, [row()], 200)
    changed.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="row 0: the chat template renders the prompt otherwise"):
        encoded(changed, [row()], 200)
    changed.chat_template = "{{ raise_exception('no roles') }}"
    with pytest.raises(UserError, match="row 0: the chat template refuses turns of user: no roles"):
        encoded(changed, [row()], 200)
