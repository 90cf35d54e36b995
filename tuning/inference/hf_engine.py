"""Sampling with transformers' generate: left-padded batches, on whatever device the model is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuning.data.encoding import rendered
from tuning.evaluation.config import PassAtKConfig
from tuning.inference.generator import Messages, seed_of
from tuning.runs.progress import tell_part
from tuning.weights.artifact import Artifact


@contextlib.contextmanager
def opened(artifact: Artifact) -> Iterator[HFGenerator]:
    """A generator on a model that is loaded for it."""
    from tuning.weights import loading

    yield HFGenerator(loading.open_model(artifact), loading.open_tokenizer(artifact))


class HFGenerator:
    """The Generator on a loaded model, which it borrows, and its tokenizer.

    A sequence ends with a turn, as the chat template has it, or with a document, as the base model
    has it. Nothing else is taken from the model's own generation defaults: they are no part of a
    run's identity. A chunk is one batch, and is seeded by its number.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        self.ends = sorted(
            {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        )

    def chunk_size(self, sampling: PassAtKConfig) -> int:
        """A batch."""
        return sampling.batch_size

    def room(self, prompts: Sequence[Messages]) -> list[int]:
        """See Generator; a model that names no context is taken to have one without end."""
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or sys.maxsize
        encoded = self.tokenizer(self._texts(prompts), add_special_tokens=False)["input_ids"]
        return [context - len(ids) for ids in encoded]

    def _texts(self, prompts: Sequence[Messages]) -> list[str]:
        return [rendered(self.tokenizer, p, add_generation_prompt=True) for p in prompts]

    def seed(self, sampling: PassAtKConfig, run_hash: str, first: int) -> int:
        """The seed of the batch whose first prompt has the place `first`."""
        return seed_of(run_hash, sampling.sampling_seed, first // sampling.batch_size)

    def generate(
        self, prompts: Sequence[Messages], sampling: PassAtKConfig, run_hash: str, first: int
    ) -> list[list[str]]:
        """See Generator; the sequences of one call are sampled together."""
        import torch

        batch = self.tokenizer(
            self._texts(prompts),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self.model.device)
        with borrowed(self.model):
            torch.manual_seed(self.seed(sampling, run_hash, first))
            output = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                **_drawn(sampling),
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.n_samples,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=[_telling(batch["input_ids"].shape[1], sampling.max_new_tokens)],
            )
        answers = self.tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        n = sampling.n_samples
        return [answers[i * n : (i + 1) * n] for i in range(len(prompts))]


def _drawn(sampling: PassAtKConfig) -> dict[str, Any]:
    """How the next token is drawn, as transformers takes it."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


def _telling(prompt: int, most: int) -> Callable[..., Any]:
    """A criterion that ends nothing, and tells the progress with every token."""

    def tell(ids: Any, *_: object, **__: object) -> Any:
        import torch

        tell_part("token", ids.shape[1] - prompt, most)
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    return tell


@contextlib.contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Generate with a model that may be in training: without gradients, dropout and defaults of its
    own. Afterwards the mode of each module, the defaults and the random numbers are as before.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _no_defaults(model):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """Without the model's generation defaults; with an adapter, the wrapper may have some too."""
    from transformers import GenerationConfig

    holders = [model, model.get_base_model()] if hasattr(model, "peft_config") else [model]
    before = [vars(holder).get("generation_config") for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            if own is None:
                del holder.generation_config
            else:
                holder.generation_config = own
