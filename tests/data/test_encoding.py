"""Where a response begins and ends as tokens."""

from __future__ import annotations

from itertools import islice

import pytest

from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.data.encoding import encode
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


def whole(tokenizer, example: dict) -> list[int]:
    messages = example["prompt"] + example["completion"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ["12\n#### 12", "Ünïcode 🙂", " starts with a blank", "1"])
def test_the_response_begins_after_the_prompt(tokenizer, template, answer):
    (found,) = encode(tokenizer, [row(answer=answer)], 200)
    prompt = tokenizer.apply_chat_template(
        row()["prompt"], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(found.prompt) == prompt
    text = answer.strip() if template == "llama-3.1" else answer
    assert tokenizer.decode(found.response).startswith(text)


def test_the_response_ends_with_the_end_of_its_turn(tokenizer, template):
    (found,) = encode(tokenizer, [row()], 200)
    assert tokenizer.decode(found.response) == f"12\n#### 12{ENDS[template]}"
    assert found.response[-1] == tokenizer.eos_token_id


def test_the_system_turn_belongs_to_the_prompt(tokenizer):
    example = row()
    example["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    (found,) = encode(tokenizer, [example], 200)
    assert "Be brief." in tokenizer.decode(found.prompt)
    assert "Be brief." not in tokenizer.decode(found.response)


def test_every_row_is_encoded_in_order(tokenizer, said):
    rows = [row(f"{n}?", str(n)) for n in range(5)]
    found = encode(tokenizer, iter(rows), 200)
    for encoded, example in zip(found, rows, strict=True):
        assert encoded.prompt + encoded.response == whole(tokenizer, example)[: len(
            encoded.prompt + encoded.response
        )]  # fmt: skip
    assert said == []


def test_what_is_too_long_loses_its_end_with_a_warning(tokenizer, said):
    rows = [row(), row(answer="12 " * 100), row(answer="13 " * 100)]
    found = encode(tokenizer, rows, 60)
    assert said == ["warning: 2 of 3 examples were cut at 60 tokens"]
    for encoded, example in zip(found[1:], rows[1:], strict=True):
        assert encoded.prompt + encoded.response == whole(tokenizer, example)[:60]
        assert encoded.response


def test_what_just_fits_is_not_cut(tokenizer, said):
    (found,) = encode(tokenizer, [row()], 200)
    length = len(whole(tokenizer, row()))
    assert encode(tokenizer, [row()], length) == [found]
    assert said == []
    encode(tokenizer, [row()], len(found.prompt + found.response) - 1)
    assert len(said) == 1


def test_a_prompt_that_fills_the_length_is_refused(tokenizer):
    (found,) = encode(tokenizer, [row()], 200)
    length = len(found.prompt)
    assert len(encode(tokenizer, [row()], length + 1)[0].response) == 1
    with pytest.raises(UserError, match=f"row 2: the prompt has {length + 4} tokens; max_seq"):
        encode(tokenizer, [row(), row(question="2 + 10?" + "7777")], length + 2)
