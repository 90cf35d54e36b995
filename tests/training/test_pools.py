"""The rows of an SFT run as token ids."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from tests.small_site import use
from tuning import config as site
from tuning.data import arith
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.errors import UserError
from tuning.training.config_training import sft_config
from tuning.training.pools import sft_pools

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("pool", "file"), [("sft", "sft.jsonl"), ("validation", "va.jsonl")])
def test_a_prompt_that_is_too_long_is_named_by_file_and_line(monkeypatch, tmp_path, pool, file):
    """Empty lines have a number too."""
    use(monkeypatch, tmp_path)
    for other in ("sft.jsonl", "va.jsonl", "pt.jsonl", "te.jsonl"):
        long = "7 " * 200 if other == file else "7"
        rows = [{"prompt": f"{other} {text}", "completion": "8"} for text in ("1", long)]
        (tmp_path / other).write_text("\n\n".join(json.dumps(row) for row in rows))
    template = (site.CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)
    config = sft_config(
        model="tiny", dataset="mine", task="math", train_size=2, values={"max_seq_length": 64}
    )
    message = rf"^{file}:3: the prompt has \d+ tokens and max_seq_length is 64, "
    with pytest.raises(UserError, match=message):
        sft_pools(config, tokenizer)
