"""A pre-training run from its config to a model directory: tokenizer, blocks of text, the loop."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from tuning import config as site
from tuning.data import arith
from tuning.engine import ranks
from tuning.engine.batches import Batches, pack
from tuning.engine.loop import train
from tuning.engine.model import build
from tuning.engine.run_config import PretrainRunConfig
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs import interrupt, manifest
from tuning.runs.atomic import whole_directory
from tuning.runs.rundir import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_DOCUMENTS = 10_000


def pretrain(config: PretrainRunConfig, directory: RunDirectory) -> None:
    """Train, or continue, the run in `directory`; leaves model/ and result.json there.

    Under torchrun every process calls this; the first one writes.
    """
    first = ranks.rank() == 0
    settings = config.training
    tokenizer, batches = _text(config)
    model = build(
        config.shape,
        seed=settings.seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    newest = manifest.newest_whole(directory.path)
    done = int(newest.name.rpartition("-")[2]) if newest else 0
    if first:
        directory.rewind_metrics(done)
    with tqdm(
        total=settings.total_steps, initial=done, desc="pre-training", unit="step",
        mininterval=2.0, disable=not first,
    ) as bar:  # fmt: skip
        state = train(
            model,
            batches,
            settings,
            directory=directory.path,
            on_step=_reporter(directory, settings.total_steps, settings.log_steps, bar)
            if first
            else None,
            should_stop=interrupt.agreed_to_stop,
        )
    if not first:
        return
    with whole_directory(directory.path / "model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    directory.write_result(
        global_step=state.step,
        train_tokens=state.tokens,
        train_seconds=round(state.seconds, 2),
        parameters=sum(p.numel() for p in model.parameters()),
        device=model.device.type,
        processes=ranks.world_size(),
    )


def _text(config: PretrainRunConfig) -> tuple[PreTrainedTokenizerFast, Batches]:
    """The tokenizer, trained on the first documents, and every batch of the run."""
    settings = config.training
    template = (site.CHAT_TEMPLATES / f"{config.chat_template}.jinja").read_text(encoding="utf-8")
    documents = arith.pretraining_documents(settings.corpus_seed)
    sample = itertools.islice(documents, TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(sample, settings.tokenizer_vocab_size, template)
    blocks = pack(
        arith.pretraining_documents(settings.corpus_seed),
        tokenizer,
        block_size=config.shape.block_size,
        num_blocks=settings.total_steps * settings.batch_size,
    )
    return tokenizer, Batches(blocks=blocks, batch_size=settings.batch_size, seed=settings.seed)


def _reporter(directory: RunDirectory, steps: int, every: int, bar: Any) -> Any:
    def report(record: dict[str, Any]) -> None:
        step = record["step"]
        note = f"loss {record['loss']:.3f}"
        if step % every == 0 or step == steps:
            directory.log_metrics(record)
        directory.progress("train", step, steps, note)
        bar.update(1)
        bar.set_postfix_str(note, refresh=False)

    return report
