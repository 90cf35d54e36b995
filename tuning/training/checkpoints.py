"""Checkpoints of the Hugging Face Trainer that are whole or not there, and that resume exactly.

Rank 0 writes, reports and shows progress; the others only write the state of their random numbers.
The Trainer writes a checkpoint file by file. The callback below seals it with a manifest once all
is written; what a kill or a full disk cut short has none and is passed over. With the seal goes
what the Trainer does not keep: how far the sweetspot rules are, and the seconds that training took.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from tuning.engine import ranks
from tuning.runs import atomic, disk, interrupt, manifest
from tuning.runs.rundir import RunDirectory
from tuning.runs.wandb_run import Reported
from tuning.training import sharded
from tuning.training.consumed import Consumed

RUN_STATE = "run_state.json"
CONSUMED = "consumed"


class Stateful(Protocol):
    """What a checkpoint carries beside the Trainer's own files."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


@dataclass(kw_only=True)
class Resume:
    """Where a run continues: a whole checkpoint, or the start."""

    checkpoint: Path | None = None
    step: int = 0
    seconds: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)


def resume_point(directory: RunDirectory) -> Resume:
    """The newest whole checkpoint of a run, on all ranks; later ones and metrics are removed."""
    return ranks.from_first(_resume_point(directory) if ranks.rank() == 0 else None)


def _resume_point(directory: RunDirectory) -> Resume:
    newest = manifest.newest_whole(directory.path)
    resume = Resume()
    if newest is not None:
        saved = atomic.read_object(newest / RUN_STATE) or {}
        step = int(newest.name.rpartition("-")[2])
        resume = Resume(checkpoint=newest, step=step, seconds=saved["seconds"], state=saved)
    for step, path in manifest.checkpoints(directory.path):
        if step > resume.step:
            shutil.rmtree(path)
    directory.rewind_metrics(resume.step if newest is not None else -1)
    return resume


class RunCallback(TrainerCallback):
    """Seals checkpoints, writes metrics and progress, reports to W&B where that is asked for, and
    turns signals into a save and a stop.
    """

    def __init__(
        self,
        directory: RunDirectory,
        resume: Resume,
        consumed: Consumed,
        stateful: Stateful | None = None,
    ) -> None:
        self.directory = directory
        self.consumed = consumed
        self.stateful = stateful
        if resume.checkpoint is not None:
            consumed.load(resume.state.get(CONSUMED))
        self.note = ""
        self.stopped = False
        """Whether a rank was asked to stop; the same on all of them."""
        self._first = ranks.rank() == 0
        self._before = resume.seconds
        self._start = time.monotonic()
        self._bar: tqdm | None = None
        self._wandb: Reported | None = None

    @property
    def seconds(self) -> float:
        """Training time since this was made, over interruptions; without what comes before: loading
        the model.
        """
        return self._before + time.monotonic() - self._start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if "wandb" in self.directory.report_to:
            settings = (self.directory.config or {}).get("settings")
            self._wandb = Reported(self.directory.name, settings)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            mininterval=2.0,
            disable=not self._first,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for keys, asked in ranks.gather((self.consumed.noted(), interrupt.asked_to_stop())):
            self.consumed.add(keys)
            self.stopped |= asked
        self.consumed.check(state.global_step)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
        if self._first:
            self.directory.progress("train", state.global_step, state.max_steps, self.note)
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(self.note, refresh=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not self._first or not logs or "loss" not in logs:
            return
        record = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        record.pop("num_tokens", None)
        record = {
            "step": state.global_step,
            **record,
            "tokens": int(state.num_input_tokens_seen),
            "seconds": round(self.seconds, 2),
        }
        self.directory.log_metrics(record)
        if self._wandb is not None:
            self._wandb.log(record)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        ranks.wait()  # all have written their part
        if not self._first:
            return
        folder = manifest.checkpoint_directory(self.directory.path, state.global_step)
        saved = self.stateful.state() if self.stateful else {}
        with disk.reporting_full(self.directory.path, folder):
            atomic.write_json(folder / RUN_STATE, saved | self._counted(state))
            manifest.write_manifest(folder)
        manifest.prune(self.directory.path)

    def _counted(self, state: TrainerState) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "tokens": int(state.num_input_tokens_seen),
            CONSUMED: self.consumed.state(),
        }

    def close(self) -> None:
        """End the progress bar and W&B, however training ended."""
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()


class WholeCheckpoints:
    """Mixed into a Trainer: saves only the trained adapter, and says so when the disk is full.

    Preference trainers keep a frozen copy of the parent as a second adapter. Saved beside the
    trained one, it makes the Trainer restore neither on resume; left out, the trained one is
    restored and the copy is rebuilt.

    Of a sharded model it writes what it writes of a whole one (sharded.py).
    """

    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any
    is_fsdp_enabled: bool
    directory: RunDirectory

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = sharded.whole_state(self.model)
        if state is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        elif self.args.should_save:
            self._save(output_dir, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharded.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        state = sharded.whole_optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """By way of the host's memory: where several processes train on CPUs, the Trainer asks
        torch for `cpu:0`, which it does not know.
        """
        if checkpoint is None:
            return
        file = Path(checkpoint) / OPTIMIZER_NAME
        if sharded.is_sharded(self.model):
            sharded.load_optimizer(self.optimizer, file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """The weights of a model that is to be sharded are loaded before it is, from a file as of a
        whole one: the Trainer looks for another where it shards.
        """
        if sharded.is_sharded(self.model):
            return
        shards, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]
        finally:
            self.is_fsdp_enabled = shards

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self.model
        original = model.save_pretrained
        if hasattr(model, "peft_config"):
            model.save_pretrained = lambda folder, **kwargs: original(
                folder, selected_adapters=["default"], save_embedding_layers=False, **kwargs
            )
            model.create_or_update_model_card = self.create_model_card
        try:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        finally:
            for name in ("save_pretrained", "create_or_update_model_card"):
                model.__dict__.pop(name, None)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None, be it that of TRL or of PEFT: config.json says what the run is."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step  # type: ignore[attr-defined]
        folder = manifest.checkpoint_directory(self.directory.path, step)
        with disk.reporting_full(self.directory.path, folder):
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
