"""Sampling with transformers' generate: left-padded batches, on whatever device the model is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from tuning.evaluation.config import PassAtKConfig
from tuning.inference.generator import (
    Messages,
    Portions,
    context_of,
    ends_of,
    seed_of,
    texts,
    token_ids,
)
from tuning.runs.progress import tell_part
from tuning.weights.artifact import Artifact


@contextlib.contextmanager
def opened(artifact: Artifact) -> Iterator[HFGenerator]:
    """A generator on a model that is loaded for it."""
    from tuning.weights import loading

    yield HFGenerator(loading.open_model(artifact), loading.open_tokenizer(artifact))


class HFGenerator:
    """The Generator on a loaded model, which it borrows, and its tokenizer.

    Nothing but the tokens that end a sequence is taken from the model's own generation defaults:
    they are no part of a run's identity. A portion is one batch, and is seeded by its number.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ends = ends_of(tokenizer, model.generation_config)

    def room(self, prompts: Sequence[Messages]) -> list[int]:
        """See Generator."""
        context = context_of(self.model.config)
        return [context - len(ids) for ids in token_ids(self.tokenizer, prompts)]

    def answers(
        self,
        prompts: Sequence[Messages],
        sampling: PassAtKConfig,
        run_hash: str,
        done: Collection[int] = (),
    ) -> Portions:
        """See Generator; a batch of which anything is missing is answered whole."""
        size = sampling.batch_size
        for first in range(0, len(prompts), size):
            batch = range(first, min(first + size, len(prompts)))
            if not all(place in done for place in batch):
                found = self.generate([prompts[n] for n in batch], sampling, run_hash, first)
                yield list(zip(batch, found, strict=True))

    def seed(self, sampling: PassAtKConfig, run_hash: str, first: int) -> int:
        """The seed of the batch whose first prompt has the place `first`."""
        return seed_of(run_hash, sampling.sampling_seed, first // sampling.batch_size)

    def generate(
        self, prompts: Sequence[Messages], sampling: PassAtKConfig, run_hash: str, first: int
    ) -> list[list[str]]:
        """`n_samples` answers to each prompt of the batch whose first prompt has the place `first`;
        its sequences are sampled together.
        """
        import torch

        batch = self.tokenizer(
            texts(self.tokenizer, prompts),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self.model.device)
        with borrowed(self.model), _in_its_precision(self.model):
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


def _in_its_precision(model: Any) -> Any:
    """Autocast for a bfloat16 model that has modules in float32, as those are that are trained
    whole: it cannot be called without. Adapters see to their own precision.
    """
    import torch

    whole = (p.dtype for name, p in model.named_parameters() if "lora_" not in name)
    mixed = model.dtype == torch.bfloat16 and torch.float32 in whole
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=mixed)


def _drawn(sampling: PassAtKConfig) -> dict[str, Any]:
    """How the next token is chosen, as transformers takes it."""
    if sampling.decoding == "beam":
        return {"do_sample": False, "num_beams": sampling.n_samples}
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
