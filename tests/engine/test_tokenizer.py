"""The tokenizer: reversible, digit by digit, the same each time; and the chat templates."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tuning.data import arith
from tuning.engine.tokenizer import END, PAD, train_tokenizer

pytestmark = pytest.mark.unit

TEMPLATES = Path(__file__).parents[2] / "tuning" / "data" / "chat_templates"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 10?"},
    {"role": "assistant", "content": "12\n#### 12"},
]


def trained():
    documents = islice(arith.pretraining_documents(0), 2_000)
    return train_tokenizer(documents, 400, (TEMPLATES / "tiny.jinja").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


def test_the_same_documents_give_the_same_tokenizer(tokenizer):
    assert len(tokenizer) == 400
    assert tokenizer.get_vocab() == trained().get_vocab()


def test_any_text_comes_back(tokenizer):
    text = "Tom has 1234 äpples.\n  <|und|> 🙂 \t#### 7"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.decode(token) for token in tokenizer.encode("1234")] == list("1234")


def test_padding_is_not_the_end(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("template", "end"),
    [("tiny", END), ("chatml", "<|im_end|>"), ("llama-3.1", "<|eot_id|>")],
)
def test_only_the_answer_and_its_end_are_learnt(tokenizer, template, end):
    tokenizer = trained() if template == "tiny" else tokenizer
    tokenizer.bos_token = "<|begin_of_text|>"
    source = (TEMPLATES / f"{template}.jinja").read_text()
    encoded = tokenizer.apply_chat_template(
        CONVERSATION,
        chat_template=source,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    learnt = tokenizer.decode([token for token, mask in pairs if mask])
    assert learnt == f"12\n#### 12{end}"


@pytest.mark.parametrize("template", ["tiny", "chatml", "llama-3.1"])
def test_the_prompt_is_a_prefix_of_the_conversation(tokenizer, template):
    def render(messages, **options):
        source = (TEMPLATES / f"{template}.jinja").read_text()
        return tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, **options
        )

    prompt = render(CONVERSATION[:2], add_generation_prompt=True)
    whole = render(CONVERSATION)
    assert whole.startswith(prompt)
    assert prompt.count("Be brief.") == 1
    assert not prompt.endswith(whole[len(prompt) :])


def test_tiny_template_in_full(tokenizer):
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == "<|system|>Be brief.<|user|>2 + 10?<|assistant|>12\n#### 12<|end|>"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role 'robot'"):
        tokenizer.apply_chat_template([{"role": "robot", "content": ""}], tokenize=False)
