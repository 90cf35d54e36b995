"""The data of a run from its config: tokenizer, training samples, held-out samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuning import config as site
from tuning.engine import ranks, sources
from tuning.engine.run_config import PretrainRunConfig
from tuning.engine.samples import (
    Blocks,
    MockSamples,
    Samples,
    Subset,
    check_vocabulary,
    split,
)
from tuning.runs import atomic
from tuning.runs.content import file_hash
from tuning.runs.errors import UserError
from tuning.runs.identity import digest
from tuning.runs.log import logger
from tuning.weights import reading

TOKENIZER_DOCUMENTS = 10_000
BROUGHT_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data of a run."""

    training: Samples
    validation: Samples | None = None
    tokenizer: Any = None
    """None if the data are tokens already and the model has no tokenizer."""


def prepare(config: PretrainRunConfig, vocab_size: int, brought: Samples | None = None) -> Data:
    """The data of a run, or samples that are passed in from Python, of which only some are checked.

    Raises UserError for token ids outside the vocabulary, and for files in the wrong format.
    """
    if brought is not None:
        _check_losses(brought, "the samples that were passed")
        found = Data(training=brought, tokenizer=_tokenizer(config))
        some = np.linspace(0, len(brought) - 1, min(len(brought), BROUGHT_LOOKED_AT))
        looked_at: list[Samples | None] = [Subset(brought, some.astype(np.int64))]
    else:
        found = _sources(config)
        looked_at = [] if config.data.use_mock_data else [found.training, found.validation]
    training, validation = found.training, found.validation
    path = config.data.data_path or "the data"
    for samples in looked_at:
        if samples is not None:
            check_vocabulary(samples, vocab_size, path)
    if config.data.validation_split:
        training, validation = split(training, config.data.validation_split, config.training.seed)
    return Data(training=training, validation=validation, tokenizer=found.tokenizer)


def _sources(config: PretrainRunConfig) -> Data:
    data, t = config.data, config.training
    if data.corpus is not None:
        return _corpus(config)
    if data.use_mock_data:
        number, vocabulary = data.mock_data_num_samples, config.shape.vocab_size
        if config.source is not None:
            vocabulary = reading.read_config(config.source).vocab_size
        mock = MockSamples(number, config.seq_len, vocabulary, t.seed)
        held_out = MockSamples(max(1, number // 10), config.seq_len, vocabulary, t.seed + 1)
        return Data(training=mock, validation=held_out)
    assert data.data_path is not None
    tokenizer = _tokenizer(config)
    held_out_path = data.validation_data_path
    return Data(
        training=_file(config, data.data_path, tokenizer),
        validation=_file(config, held_out_path, tokenizer) if held_out_path else None,
        tokenizer=tokenizer,
    )


def _corpus(config: PretrainRunConfig) -> Data:
    """The generated text, and a tokenizer trained on its first documents."""
    from tuning.data import arith
    from tuning.engine.tokenizer import train_tokenizer

    data, t = config.data, config.training
    template = site.chat_template(config.chat_template).read_text(encoding="utf-8")
    documents = arith.pretraining_documents(data.corpus_seed)
    first = itertools.islice(documents, TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(first, data.tokenizer_vocab_size, template)
    blocks = (t.max_steps or 0) * config.global_batch
    tokens, starts = sources.tokenize_documents(
        arith.pretraining_documents(data.corpus_seed),
        tokenizer,
        needed=blocks * config.seq_len + 1,
    )
    return Data(training=Blocks(tokens, starts, config.seq_len, blocks), tokenizer=tokenizer)


def _tokenizer(config: PretrainRunConfig) -> Any:
    """The tokenizer of the settings, or else that of the model; None if it has none."""
    location = config.data.tokenizer or config.source
    if location is None:
        return None
    has_one = (
        config.data.tokenizer
        or not Path(location).is_dir()
        or any(Path(location).glob("tokenizer*"))
    )
    return reading.read_tokenizer(location) if has_one else None


def _file(config: PretrainRunConfig, path: str, tokenizer: Any) -> Samples:
    """Rows as they are; documents and text in blocks of seq_len tokens."""
    kind = sources.kind_of(path)
    samples: Samples
    if kind == "rows":
        most = config.compute.max_tokens_per_gpu
        samples = sources.read_rows(path, max_tokens=most, on_long=config.data.on_long)
    else:
        tokens, starts = _stream(Path(path), kind, tokenizer)
        samples = Blocks(tokens, starts, config.seq_len)
    _check_losses(samples, f"'{path}'")
    return samples


def _check_losses(samples: Samples, source: str) -> None:
    """Raise UserError where no token has a loss, and say how many samples have none."""
    empty = int((samples.loss_tokens == 0).sum())
    if empty == len(samples):
        raise UserError(
            f"no token of {source} has a loss, so there is nothing to learn: a label of -100 has "
            "none, nor has the first token of a row or document."
        )
    if empty and ranks.rank() == 0:
        logger.warning(f"{empty} of {len(samples)} samples of {source} have no token with a loss")


def _stream(path: Path, kind: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, starts) of the documents of a file, cached under TUNING_HOME: rank 0 tokenizes the
    file, and all ranks memory-map the result.
    """
    how = tokenizer.to_str() if hasattr(tokenizer, "to_str") else repr(tokenizer)
    name = digest({"file": file_hash(path), "kind": kind, "tokenizer": how})[:16]
    folder = site.home() / "data" / "tokens" / name
    if ranks.rank() == 0 and not (folder / "starts.npy").exists():
        if kind == "documents":
            tokens, starts = sources.read_token_documents(path)
        else:
            tokens, starts = sources.tokenize_documents(sources.read_texts(path), tokenizer)
        if not len(tokens):
            raise UserError(f"'{path}' has no text in it; give a file with at least one.")
        with atomic.whole_directory(folder) as temporary:
            np.save(temporary / "tokens.npy", tokens)
            np.save(temporary / "starts.npy", starts)
    ranks.wait()
    return np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "starts.npy")
