"""The chat templates, word for word."""

from __future__ import annotations

import pytest

from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 10?"}
ANSWER = {"role": "assistant", "content": "12\n#### 12"}
TURNS = {
    "tiny": {
        "start": "",
        "system": "<|system|>Be brief.",
        "user": "<|user|>2 + 10?",
        "assistant": "<|assistant|>12\n#### 12<|end|>",
        "prompt": "<|assistant|>",
    },
    "chatml": {
        "start": "",
        "system": "<|im_start|>system\nBe brief.<|im_end|>\n",
        "user": "<|im_start|>user\n2 + 10?<|im_end|>\n",
        "assistant": "<|im_start|>assistant\n12\n#### 12<|im_end|>\n",
        "prompt": "<|im_start|>assistant\n",
    },
    "llama-3.1": {
        "start": "<|begin_of_text|>",
        "system": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
        "user": "<|start_header_id|>user<|end_header_id|>\n\n2 + 10?<|eot_id|>",
        "assistant": "<|start_header_id|>assistant<|end_header_id|>\n\n12\n#### 12<|eot_id|>",
        "prompt": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    },
}
CONVERSATIONS = {
    "user": [USER],
    "system-user": [SYSTEM, USER],
    "user-assistant": [USER, ANSWER],
    "system-user-assistant": [SYSTEM, USER, ANSWER],
    "two-turns": [SYSTEM, USER, ANSWER, USER, ANSWER],
}


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer([arith.VERSION], 300, "")
    made.bos_token = "<|begin_of_text|>"
    return made


def render(tokenizer, template, messages, **options):
    source = (CHAT_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)


def test_every_template_is_tested():
    assert {path.stem for path in CHAT_TEMPLATES.glob("*.jinja")} == TURNS.keys()


@pytest.mark.parametrize("template", TURNS)
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("prompt", [False, True], ids=["whole", "prompt"])
def test_a_conversation_is_written_out_exactly(tokenizer, template, messages, prompt):
    turns = TURNS[template]
    expected = turns["start"] + "".join(turns[message["role"]] for message in messages)
    expected += turns["prompt"] if prompt else ""
    assert render(tokenizer, template, messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("template", TURNS)
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER]])
@pytest.mark.parametrize("answer", ["12", "12\n#### 12", "", "a <b> & 'c'"])
def test_the_prompt_is_a_prefix_of_the_whole(tokenizer, template, messages, answer):
    prompt = render(tokenizer, template, messages, add_generation_prompt=True)
    turn = {"role": "assistant", "content": answer}
    whole = render(tokenizer, template, [*messages, turn])
    assert whole.startswith(prompt)
    end = {"tiny": "<|end|>", "chatml": "<|im_end|>\n", "llama-3.1": "<|eot_id|>"}[template]
    assert whole.removeprefix(prompt) == answer + end


@pytest.mark.parametrize("template", TURNS)
def test_an_unknown_role_is_refused(tokenizer, template):
    with pytest.raises(Exception, match="unknown role 'robot'"):
        render(tokenizer, template, [{"role": "robot", "content": ""}])
