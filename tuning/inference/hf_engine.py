"""Sampling with transformers' generate: left-padded batches, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning.evaluation.config import PassAtKConfig


class HFGenerator:
    """The Generator on a loaded model and its tokenizer.

    A sequence ends with a turn, as the chat template has it, or with a document, as the base model
    has it. Nothing else is taken from the model's own generation defaults: they are no part of a
    run's identity.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import GenerationConfig

        self.model = model.eval()
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        self.ends = sorted(
            {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        )
        model.generation_config = GenerationConfig()

    def generate(
        self, prompts: Sequence[list[dict[str, Any]]], sampling: PassAtKConfig, seed: int
    ) -> list[list[str]]:
        """See Generator; the sequences of one call are sampled together."""
        import torch

        texts = [
            self.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
            for p in prompts
        ]
        batch = self.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(self.model.device)
        torch.manual_seed(seed)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.n_samples,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answers = self.tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        n = sampling.n_samples
        return [answers[i * n : (i + 1) * n] for i in range(len(prompts))]
