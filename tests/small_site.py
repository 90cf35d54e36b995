"""A small site of a test's own: TUNING_HOME and a collections.yaml whose numbers stay as they are
here, whatever the project's own file says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

COLLECTIONS = """
tasks:
  math: {aliases: [gsm8k], datasets: [arith, mine]}
  instruction: {aliases: [ifeval], datasets: [later]}
datasets:
  arith: {loader: arith}
  mine: {loader: jsonl, sft: sft.jsonl, preference: pt.jsonl, validation: va.jsonl, test: te.jsonl}
  later: {loader: tuluif}
sft_ratio: [0.0, 0.5, 1.0]
pft_methods: [dpo, kto, grpo]
perplexity_thresholds: [3.0, 2.5]
models:
  tiny:
    from_run: tiny
    chat_template: tiny
    perplexity_thresholds: [2.0, 1.6]
    settings:
      pretrain: {preset: tiny, max_steps: 7}
      sft: {learning_rate: 5.0e-3, effective_batch_size: 32, micro_batch_size: 32, eval_steps: 5}
      pft: {effective_batch_size: 32, micro_batch_size: 32, kl_batch_size: 32, beta: 0.1}
      grpo: {learning_rate: 5.0e-4, merge_parent: true}
      evaluation: {prompts: 50, n_samples: 4, k_values: [1, 2, 4]}
  big: {hub: org/big, chat_template: chatml, full_modules: [embed_tokens, lm_head]}
"""


def use(monkeypatch: pytest.MonkeyPatch, root: Path, text: str = COLLECTIONS) -> Path:
    """Make `root` the site of this test; returns its TUNING_HOME."""
    (root / "collections.yaml").write_text(text)
    home = root / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("TUNING_COLLECTIONS", str(root / "collections.yaml"))
    monkeypatch.setenv("TUNING_HOME", str(home))
    return home
