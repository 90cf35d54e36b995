"""Milliseconds an optimizer step over a bare PyTorch loop: the engine's loop and TRL's SFTTrainer,
on the same tiny model, the same batches and with the same optimizer.

    python benchmarks/loop_overhead.py

The model is the preset `tiny`, and a batch is so small that what surrounds the arithmetic shows.
The bare loop is forward, cross-entropy, backward, clip, AdamW, zero_grad and loss.item(), on
tensors that lie ready; once with the attention of transformers (sdpa on [batch, tokens]) and once
with the engine's (documents end to end in one row). The engine makes its batches itself and writes
metrics.jsonl, log.txt, progress.json and its progress bar as in any run; TRL logs every step into
memory. Loops take turns, step by step, so that a busy moment hits both, and what a loop costs is
taken from neighbouring steps; their losses must agree. A mean holds what happens now and then
(progress.json twice a second), and also what else the machine does.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tuning.engine import attention, flops, loop, model, ranks, setup
from tuning.engine.batches import Batches
from tuning.engine.reporting import Reporter
from tuning.engine.run_config import PretrainRunConfig, experiment_config, preset
from tuning.engine.samples import IGNORED, Rows
from tuning.runs.rundir import RunDirectory

SAMPLES, TOKENS = 4, 16
"""Of a batch, and of a sample."""
WARM_UP, STEPS, ROUNDS = 20, 200, 5
AIM = 1.0
Batch = tuple[dict[str, Any], torch.Tensor]
"""What a model is called with, and labels."""


def config_of(folder: str) -> PretrainRunConfig:
    """The run that all loops do; its home is a temporary folder."""
    os.environ["TUNING_HOME"] = folder
    values = preset("tiny") | {
        "corpus": None,
        "use_mock_data": True,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "max_lr": 1e-3,
        "seq_len": TOKENS,
        "micro_batch_size": SAMPLES,
        "max_steps": WARM_UP + STEPS,
        "total_batch_size": SAMPLES * TOKENS,
    }
    return experiment_config("overhead", values)


def samples_of(config: PretrainRunConfig) -> Rows:
    """Random tokens."""
    size = SAMPLES * (WARM_UP + STEPS), TOKENS
    tokens = list(np.random.default_rng(0).integers(0, config.shape.vocab_size, size))
    return Rows(tokens, tokens)


def built(config: PretrainRunConfig) -> Any:
    """The same weights each time."""
    return model.build(config.shape, seed=0, eos_token_id=1, pad_token_id=0)


def batches_of(config: PretrainRunConfig, samples: Rows, cost: flops.Flops) -> Batches:
    """The batches of all loops."""
    return setup.batches_of(
        samples,
        SAMPLES,
        ranks.layout(),
        config.compute,
        cost,
        seed=config.training.seed,
        longest=TOKENS,
    )


class Bare:
    """What any loop must do, and no more."""

    def __init__(self, config: PretrainRunConfig, batches: list[Batch], attends: str) -> None:
        self.batches = iter(batches)
        self.network = built(config)
        self.network.set_attn_implementation(attends)
        self.network.train()
        weights, t = list(self.network.parameters()), config.training
        decayed = [p for p in weights if p.dim() > 1]
        vectors = [p for p in weights if p.dim() == 1]
        self.optimizer = loop.adamw(t)(
            [
                {"params": decayed, "weight_decay": t.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ]
        )
        self.clip = t.grad_clip_value
        self.losses: list[float] = []

    def step(self) -> None:
        """One of them."""
        inputs, labels = next(self.batches)
        logits = self.network(**inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


class Turns:
    """Between two steps of a loop, a step of each bare one; the times of all of them."""

    def __init__(self, name: str, bare: dict[str, Bare]) -> None:
        self.name = name
        self.bare = bare
        self.times: dict[str, list[float]] = {key: [] for key in (*bare, name)}
        self._begun: float | None = None

    def take(self) -> None:
        """Called once a step by the loop that is measured."""
        now = time.perf_counter()
        if self._begun is not None:
            self.times[self.name].append(now - self._begun)
        for name, other in self.bare.items():
            started = time.perf_counter()
            other.step()
            self.times[name].append(time.perf_counter() - started)
        self._begun = time.perf_counter()

    def check(self, losses: list[float]) -> None:
        """Refuse to compare loops that did not do the same. Later, rounding has grown too large."""
        found = [kept[WARM_UP] for kept in (losses, *(b.losses for b in self.bare.values()))]
        if max(found) - min(found) > 1e-4:
            raise SystemExit(f"{self.name} did not do the same: losses {found}")


def engine(config: PretrainRunConfig, samples: Rows, turns: Turns) -> None:
    """`loop.train` with what `pretraining.pretrain` puts around it."""
    t, layout, losses = config.training, ranks.layout(), []
    spread, cost = setup.open_model(
        lambda _: built(config),
        lambda _: built(config),
        layout,
        config.compute,
        precision=t.precision,
    )
    batches = batches_of(config, samples, cost)

    def should_stop() -> bool:
        turns.take()
        return ranks.agreed_to_stop()

    def on_step(record: dict[str, Any]) -> None:
        reporter.step(record)
        losses.append(record["loss"])

    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        reporter = Reporter(
            directory, config.output, "loop_overhead", steps=t.max_steps, done=0, report_to=[]
        )
        with reporter:
            loop.train(
                spread,
                batches,
                t,
                steps=t.max_steps,
                directory=directory.path,
                flops=cost,
                on_step=on_step,
                should_stop=should_stop,
            )
    turns.check(losses)


def ready(batches: Batches, steps: int) -> Iterator[Batch]:
    """The batches of all steps, in the engine's form."""
    for step in range(steps):
        (row,) = batches.rows(batches.at(step), torch.device("cpu"))
        inputs = {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "documents": row.documents,
        }
        labels = torch.full((row.input_ids.shape[1],), IGNORED)
        labels[row.kept] = row.targets
        yield inputs, labels


def trl(config: PretrainRunConfig, samples: Rows, order: np.ndarray, turns: Turns) -> None:
    """SFTTrainer as run_sft.py drives it, but all weights train."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    from tuning.engine.tokenizer import train_tokenizer

    class Taking(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.take()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    rows = [samples[int(i)].input_ids.tolist() for i in order]
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=built(config),
            args=trl_arguments(config, folder),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
            # Asked for its padding only.
            processing_class=train_tokenizer(["a"], config.shape.vocab_size, ""),
            callbacks=[Taking()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    turns.check([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def trl_arguments(config: PretrainRunConfig, folder: str) -> Any:
    """The config's settings in TRL's words."""
    from trl import SFTConfig

    t = config.training
    fused = loop.adamw(t)([{"params": [torch.nn.Parameter(torch.zeros(1))]}]).defaults["fused"]
    return SFTConfig(
        output_dir=folder,
        report_to=[],
        max_steps=t.max_steps or 0,
        save_strategy="no",
        per_device_train_batch_size=SAMPLES,
        learning_rate=t.max_lr,
        lr_scheduler_type="constant",
        weight_decay=t.weight_decay,
        adam_beta2=t.adam_beta2,
        max_grad_norm=t.grad_clip_value,
        optim="adamw_torch_fused" if fused else "adamw_torch",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        max_length=None,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars cost what they cost, unseen."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def measured(config: PretrainRunConfig) -> list[Turns]:
    """Rounds of the engine and of TRL, in turns with the bare loops."""
    samples, steps = samples_of(config), WARM_UP + STEPS
    cost = flops.count(built(config))
    batches = batches_of(config, samples, cost)
    rows = list(ready(batches, steps))
    padded = [
        ({"input_ids": inputs["input_ids"].view(SAMPLES, TOKENS)}, labels)
        for inputs, labels in rows
    ]
    order = np.concatenate([batches.chosen(step) for step in range(steps)])
    found = []
    for _ in range(ROUNDS):
        for name in ("tuning", "TRL"):
            bare = {
                "bare, sdpa": Bare(config, padded, "sdpa"),
                "bare, documents": Bare(config, rows, attention.NAME),
            }
            turns = Turns(name, bare)
            with quiet():
                if name == "tuning":
                    engine(config, samples, turns)
                else:
                    trl(config, samples, order, turns)
            found.append(turns)
    return found


def column(found: list[Turns], name: str, over: str | None = None) -> list[float]:
    """Milliseconds of all steps after the warm-up, or how many more than those of another loop."""
    values = []
    for turns in found:
        if name in turns.times:
            other = turns.times[over] if over else [0.0] * len(turns.times[name])
            pairs = zip(turns.times[name], other, strict=False)
            values += [(a - b) * 1000 for a, b in list(pairs)[WARM_UP:]]
    return values


def main() -> None:
    """Print one table, and whether the aim was reached."""
    with tempfile.TemporaryDirectory() as folder:
        found = measured(config_of(folder))
    print(
        f"tiny, {SAMPLES} x {TOKENS} tokens a step, {STEPS} steps after {WARM_UP}, {ROUNDS} "
        f"rounds, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
        "ms, median (mean)"
    )
    print(f"{'loop':16} {'a step':>15} {'over bare, sdpa':>17} {'over bare, documents':>21}")
    for name in ("bare, sdpa", "bare, documents", "tuning", "TRL"):
        cells = [shown(column(found, name))]
        cells += [shown(column(found, name, over)) for over in ("bare, sdpa", "bare, documents")]
        print(f"{name:16} {cells[0]:>15} {cells[1]:>17} {cells[2]:>21}")
    cost = statistics.median(column(found, "tuning", "bare, sdpa"))
    said = "reached" if cost <= AIM else "missed"
    print(f"the engine's loop costs {cost:.2f} ms a step; aim {AIM:.0f} ms: {said}")


def shown(values: list[float]) -> str:
    """Median and mean."""
    return f"{statistics.median(values):.2f} ({statistics.mean(values):.2f})"


if __name__ == "__main__":
    main()
