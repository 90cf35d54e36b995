"""A program of test_unsloth.py, started anew: what is imported first, and every argument that
unsloth is called with, held against its real signatures. Prints one JSON object. With run_sft or
run_dpo and their flags it is that instead, as far as it goes.

Without a GPU unsloth stops inside from_pretrained(): what it would give is made by transformers and
peft here, and nothing of its kernels is run.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from tuning.runs.rundir import RunDirectory
from tuning.training import backend
from tuning.training.config_training import preference_config, sft_config
from tuning.training.parents import parent_of

DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math"}
PATCHED = ("transformers", "peft", "trl")
calls: list[dict[str, Any]] = []
asked: list[str] = []


class Watch:
    """Notes what is imported, in its order, and finds nothing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        asked.append(name)


def sft(**values: Any) -> Any:
    return sft_config(**DATA, train_size=16, values={"backend_train": "unsloth", **values})


def held(owner: Any, name: str, instead: Any) -> None:
    """Have a function refuse what its real signature does not name, and then do something else."""
    signature = inspect.signature(getattr(owner, name))

    def called(*args: Any, **kwargs: Any) -> Any:
        named = {n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        if unknown := kwargs.keys() - named:
            raise TypeError(f"{name} has no {', '.join(sorted(unknown))}")
        given = signature.bind(*args, **kwargs).arguments
        calls.append({"function": name} | {k: v for k, v in given.items() if k != "model"})
        return instead(**given)

    setattr(owner, name, staticmethod(called))


def opened(model_name: str, dtype: Any, **_: Any) -> tuple[Any, None]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype), None


def with_lora(model: Any, r: int, target_modules: list[str], **_: Any) -> Any:
    import peft

    return peft.get_peft_model(
        model, peft.LoraConfig(r=r, target_modules=target_modules, task_type="CAUSAL_LM")
    )


def hold() -> None:
    """Have what needs a GPU done without one."""
    from unsloth import FastLanguageModel

    held(FastLanguageModel, "from_pretrained", opened)
    held(FastLanguageModel, "get_peft_model", with_lora)
    held(FastLanguageModel, "patch_peft_model", lambda model, **_: model)


def stage(name: str) -> None:
    """An entry point; says what each of its processes has imported when it trains or samples."""
    from tuning import entry
    from tuning.inference import hf_engine

    imports, generate = backend._import_unsloth, hf_engine.HFGenerator.generate

    def held_import() -> None:
        if "unsloth" not in sys.modules:
            print("trains", [name for name in PATCHED if name in sys.modules], flush=True)
            imports()
            hold()

    def watched(self: Any, *args: Any) -> Any:
        print("samples", "unsloth" in sys.modules, flush=True)
        return generate(self, *args)

    backend._import_unsloth = held_import  # type: ignore[assignment]
    hf_engine.HFGenerator.generate = watched  # type: ignore[method-assign]
    del sys.argv[1]
    entry.run(importlib.import_module(f"tuning.{name}").main)


def main(folder: Path) -> None:
    """One run trained, and the models of three more opened."""
    run = sft()
    early = [name for name in PATCHED if name in sys.modules]
    sys.meta_path.insert(0, Watch())  # type: ignore[arg-type]
    train = backend.trainer_of(run)
    hold()
    directory = RunDirectory(folder / run.run_name)
    with_identity(directory, run)
    train(run, directory, [])

    from tuning.weights.artifact import artifact_of

    base = artifact_of(run.model)
    for other in (sft(full=True), sft(load_in_4bit=True, gradient_checkpointing=False)):
        backend.open_policy(other, artifact_of(other.model))
    values = {"backend_train": "unsloth"}
    fork = preference_config(
        **DATA, pft_method="dpo", train_size=8, parent=parent_of(run, run.run_name), values=values
    )
    further = artifact_of(run.model, directory)
    model, adapter = backend.open_policy(fork, further, continues=fork.continues_adapter)
    assert adapter is None and base.base == further.base
    print(
        json.dumps(
            {
                "early": early,
                "first": min(("unsloth", *PATCHED), key=asked.index),
                "calls": calls,
                "result": directory.result,
                "trained": sorted({n.rpartition(".")[0][-14:] for n, p in model.named_parameters()
                                   if p.requires_grad}),
            },
            default=str,
        )
    )  # fmt: skip


def with_identity(directory: RunDirectory, run: Any) -> None:
    """The config.json of a run that is trained without its phases."""
    from dataclasses import asdict

    from tuning.runs import atomic

    directory.path.mkdir()
    identity = run.identity()
    atomic.write_json(directory.path / "config.json", {"format": 2, **asdict(identity)})


if __name__ == "__main__":
    if sys.argv[1].startswith("run_"):
        stage(sys.argv[1])
    main(Path(sys.argv[1]))
