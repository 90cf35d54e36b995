"""The data of the trials of a search: a few rows of the real pool, as many as an optimizer step
takes, so that every step of a trial is the same batch and is as demanding as any real one.

Where sequences are padded to the longest of their forward pass, one longest row makes that pass as
large as it can be, so the batch is the longest row and others over the whole range of lengths: its
memory is the worst, its time the usual. Where sequences are packed up to a number of tokens, the
batch is the longest rows, which fill every pass. Pre-training on blocks of one length gets random
tokens of that length.

The lengths are those of the run's own tokenizer. They are measured once and kept in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuning.autotune.config import AutotuneRunConfig
from tuning.data import train_dataset
from tuning.flags import restore
from tuning.methods import method
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.identity import digest

POOLS = {"sft": ("sft", "validation"), "pft": ("preference",)}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which rows a trial trains on, and the lengths of the pool that they stand for."""

    numbers: tuple[int, ...] | None
    """Rows of the pool, from 0; None: random tokens."""
    longest: int
    """Tokens of the longest sequence of the pool."""
    mean: float
    """Tokens of a sequence of the batch on average, without padding."""
    lengths: tuple[int, ...] = ()
    """Tokens of each row of the batch; () for random tokens."""


def target_of(config: AutotuneRunConfig) -> int:
    """Examples of an optimizer step, over all processes."""
    run = config.trained
    if config.serves == "pretrain":
        return int(run.global_batch)
    if config.serves == "pft":
        assert config.train_size is not None
        return int(run.batch(config.train_size))
    return int(run.training.effective_batch_size)


def sample_of(config: AutotuneRunConfig, cache: Path) -> Sample:
    """The rows that stand for the pool of a run; kept in `cache`."""
    run = config.trained
    if config.serves == "pretrain" and not _has_rows(run):
        return Sample(numbers=None, longest=run.seq_len, mean=run.seq_len)
    key = digest({"data": _data_of(config), "rows": target_of(config), "packed": _packed(config)})
    path = cache / f"{key[:16]}.json"
    if (found := atomic.read_object(path)) is not None:
        return restore(Sample, found)
    lengths = _lengths(config)
    numbers = chosen(lengths, target_of(config), packed=_packed(config))
    if is_unpaired(config):
        numbers = with_both_labels(numbers, [row["label"] for row in _pool(config)])
    batch = tuple(lengths[n] for n in numbers)
    made = Sample(
        numbers=tuple(numbers),
        longest=max(lengths),
        mean=sum(batch) / len(batch),
        lengths=batch,
    )
    atomic.write_json(path, asdict(made))
    return made


def chosen(lengths: Sequence[int], count: int, *, packed: bool) -> list[int]:
    """`count` rows by their numbers, or all where there are fewer: the longest, and the next ones
    (packed), or others at equal distances in the order of their lengths.
    """
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    if packed or len(order) <= count:
        return order[:count]
    first, rest, wanted = order[0], order[1:], count - 1
    return [first, *(rest[int((i + 0.5) * len(rest) / wanted)] for i in range(wanted))]


def is_unpaired(config: AutotuneRunConfig) -> bool:
    """Whether it is KTO on rows with labels, each an example, and not on pairs."""
    run = config.trained
    if config.serves != "pft" or not method(run.pft_method).unpaired:
        return False
    return train_dataset.is_unpaired(run.dataset.entry)


def with_both_labels(numbers: Sequence[int], labels: Sequence[bool]) -> list[int]:
    """Rows that have both labels, without which KTO does not train: the last one makes room for the
    first of the other label, where all of them have the same.
    """
    if len({labels[n] for n in numbers}) > 1:
        return list(numbers)
    other = (n for n, label in enumerate(labels) if label != labels[numbers[0]])
    return [*numbers[: max(1, len(numbers) - 1)], next(other)]


def _pool(config: AutotuneRunConfig) -> list[dict[str, Any]]:
    """The preference rows that a run is trained on."""
    rows: list[dict[str, Any]] = config.trained.dataset.rows("preference", config.train_size)
    return rows


def write(config: AutotuneRunConfig, sample: Sample, folder: Path) -> dict[str, str]:
    """Write the rows of a sample to files in `folder`; their paths by pool, {} for random ones."""
    if sample.numbers is None:
        return {}
    run = config.trained
    if config.serves == "pretrain":
        lines = _lines(run.data.data_path)
        return {"rows": _written(folder / "rows.jsonl", [lines[n] for n in sample.numbers])}
    pool, *others = POOLS[config.serves]
    rows = run.dataset.rows(pool)
    found = {pool: [rows[n] for n in sample.numbers]}
    found |= {other: run.dataset.rows(other)[:1] for other in others}
    return {
        name: _written(folder / f"{name}.jsonl", [json.dumps(row) for row in rows])
        for name, rows in found.items()
    }


def _written(path: Path, lines: Sequence[str]) -> str:
    atomic.write_text(path, "".join(f"{line}\n" for line in lines))
    return str(path)


def _has_rows(run: Any) -> bool:
    """Whether a pre-training reads rows of different lengths."""
    from tuning.engine.sources import kind_of

    return run.data.data_path is not None and kind_of(run.data.data_path) == "rows"


def _packed(config: AutotuneRunConfig) -> bool:
    return config.serves == "pretrain" or config.trained.trainer == "engine"


def _data_of(config: AutotuneRunConfig) -> dict[str, Any]:
    """What the lengths of a pool depend on."""
    run = config.trained
    if config.serves == "pretrain":
        return {"version": run.data_version, "most": run.compute.max_tokens_per_gpu}
    return {
        "dataset": [run.dataset.dataset, run.dataset.version],
        "size": run.dataset.train_size or config.train_size,
        "model": run.model.identity_hash,
        "template": run.model.chat_template,
        "longest": run.model.max_seq_length,
        "method": getattr(run, "pft_method", "sft"),
        "completion": getattr(run.training, "max_completion_length", None),
    }


def _lengths(config: AutotuneRunConfig) -> list[int]:
    """Tokens of each row of the pool, encoded as the run encodes it."""
    run = config.trained
    if config.serves == "pretrain":
        lines = _lines(run.data.data_path)
        most = run.compute.max_tokens_per_gpu
        return [min(len(json.loads(line)["input_ids"]), most) for line in lines]
    from tuning.training.pools import preference_pairs, sft_pools, unpaired_answers
    from tuning.weights import loading

    tokenizer = loading.open_tokenizer(artifact(config))
    if config.serves == "sft":
        return [len(row.ids) for row in sft_pools(run, tokenizer)[0]]
    size = config.train_size or 0
    if run.pft_method == "grpo":
        return _prompts(run, tokenizer, size)
    if is_unpaired(config):
        return [len(answer.ids) for answer, _ in unpaired_answers(run, tokenizer, size)]
    pairs = preference_pairs(run, tokenizer, size)
    return [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]


def _prompts(run: Any, tokenizer: Any, size: int) -> list[int]:
    """Of sampled answers: each prompt, and an answer of full length."""
    from tuning.data.encoding import prompt_lengths

    rows, where = run.dataset.rows("preference", size), run.dataset.where("preference")
    lengths = prompt_lengths(tokenizer, rows, run.model.max_seq_length, where)
    return [length + run.training.max_completion_length for length in lengths]


def artifact(config: AutotuneRunConfig) -> Any:
    """Where the weights lie that a run starts from."""
    from tuning.runs.rundir import RunDirectory
    from tuning.weights.artifact import artifact_of

    parent = RunDirectory(Path(config.parent)) if config.parent else None
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    return artifact_of(config.trained.model, parent, checkpoint)


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}).") from None
    return [line for line in text.split("\n") if line.strip()]
