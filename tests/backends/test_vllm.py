"""A real vLLM, on a CPU: the same answers as transformers gives, adapters as they are and merged,
beams, an interruption, and what it refuses. `make test-backends` makes the environment of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.small_site import use
from tuning import config as site
from tuning import run_inference, run_pretrain, run_sft
from tuning.data import train_dataset
from tuning.evaluation.config import PassAtKConfig
from tuning.inference.beside import Beside
from tuning.inference.generator import Generator, Messages, opened, token_ids
from tuning.inference.vllm_start import STARTS, STEP_TOKENS
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted, StageFailed
from tuning.runs.rundir import RunDirectory
from tuning.training import sft_training
from tuning.training.config_training import model_config, sft_config
from tuning.weights.artifact import Artifact, artifact_of

pytest.importorskip("vllm", reason="make test-backends makes an environment that has it")

COLLECTIONS = """
tasks:
  math: {datasets: [arith]}
datasets:
  arith: {loader: arith}
sft_ratio: [1.0]
pft_methods: [dpo]
perplexity_thresholds: [3.0]
models:
  small:
    from_run: small
    chat_template: tiny
    settings:
      pretrain: {preset: tiny, max_steps: 200, num_attention_heads: 3, num_key_value_heads: 3}
      sft: {learning_rate: 5.0e-3, effective_batch_size: 16, micro_batch_size: 16, lora_r: 12,
            lora_alpha: 12, validation_size: 8, max_seq_length: 128}
      evaluation: {prompts: 12, n_samples: 3, k_values: [1, 3], max_new_tokens: 32}
  odd:
    from_run: odd
    chat_template: tiny
    settings:
      pretrain: {preset: tiny, max_steps: 1}
"""
"""Heads of 32 dimensions, as vLLM's attention on a CPU can compute; `odd` has 24."""
DATA = ["--dataset", "arith", "--task", "math"]
GREEDY = PassAtKConfig(
    prompts=64, n_samples=1, k_values=(1,), temperature=0.0, max_new_tokens=32, backend="vllm",
    merge_adapter=False,
)  # fmt: skip
GAVE_BACK = (
    "Error in memory profiling. Initial free memory 96.48 GiB, current free memory 137.63 GiB. "
    "This happens when other processes sharing the same container release GPU memory while vLLM is "
    "profiling during initialization."
)
AGAIN = "another process gave memory of the GPU back; vLLM is started again"
DRAWN = PassAtKConfig(
    prompts=12, n_samples=3, k_values=(1,), max_new_tokens=32, backend="vllm", merge_adapter=False
)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory) -> Iterator[Path]:
    """A site with a model that was pre-trained, and two that were tuned."""
    with pytest.MonkeyPatch.context() as patch:
        found = use(patch, tmp_path_factory.mktemp("site"), COLLECTIONS)
        assert run_pretrain.main(["--model", "small"]) == 0
        sft = ["--model", "small", *DATA, "--train_size", "320", "--do_training"]
        assert run_sft.main(sft) == 0
        assert run_sft.main([*sft, "--full_modules", "embed_tokens", "lm_head"]) == 0
        yield found


def tuned(*, full: bool) -> Artifact:
    """The artifact of an adapter, with or without whole modules."""
    for path in site.models_dir().glob("small_sft-*"):
        config = json.loads((path / "model" / "adapter_config.json").read_text())
        if bool(config["modules_to_save"]) == full:
            return artifact_of(model_config("small"), RunDirectory(path))
    raise AssertionError("it is not there")


@pytest.fixture(scope="module")
def adapter(home: Path) -> Artifact:
    return tuned(full=False)


@pytest.fixture(scope="module")
def prompts(home: Path) -> list[Messages]:
    entry = site.collections().dataset("arith")
    return [row["prompt"] for row in train_dataset.rows(entry, "test", 64)]


@pytest.fixture(scope="module")
def vllm(adapter: Artifact) -> Iterator[Generator]:
    """An engine on the adapter that is not merged."""
    with opened("vllm", adapter) as generator:
        yield generator


def answered(
    generator: Generator,
    prompts: list[Messages],
    sampling: PassAtKConfig,
    run: str = "a",
    **more: Any,
) -> list[list[str]]:
    """The answers to all prompts, in their order."""
    found = dict(
        p for portion in generator.answers(prompts, sampling, run, **more) for p in portion
    )
    return [found[place] for place in sorted(found)]


def agreement(one: list[list[str]], other: list[list[str]]) -> float:
    """The share of prompts with the same first answer."""
    assert len(one) == len(other)
    return sum(a[0] == b[0] for a, b in zip(one, other, strict=True)) / len(one)


def test_greedy_answers_are_those_of_transformers(vllm, adapter, prompts):
    with opened("hf", adapter) as hf:
        expected = answered(hf, prompts, GREEDY)
    found = answered(vllm, prompts, GREEDY)
    assert len({text for (text,) in found}) > 20
    assert agreement(found, expected) >= 0.95


def test_answers_depend_on_the_run_and_the_place_alone(vllm, prompts):
    some = prompts[:6]
    first = answered(vllm, some, DRAWN)
    assert [len(texts) for texts in first] == [3] * 6
    assert len({text for texts in first for text in texts}) > 12
    assert answered(vllm, some, DRAWN) == first
    assert answered(vllm, some, DRAWN, run="b") != first
    assert answered(vllm, some, DRAWN, done={0, 1, 3, 4, 5}) == [first[2]]


def test_more_prompts_than_a_step_can_read_change_no_answer(vllm, prompts):
    """Of 192 prompts with two answers each, some wait for a step of their own."""
    short = replace(DRAWN, n_samples=2, max_new_tokens=6)
    many = prompts * 3
    assert 2 * sum(map(len, token_ids(vllm.tokenizer, many))) > 2 * STEP_TOKENS
    found = answered(vllm, many, short)
    assert [len(texts) for texts in found] == [2] * 192
    assert agreement(found[:24], answered(vllm, many[:24], short)) >= 0.95


def test_prompts_without_room_get_nothing_and_others_what_is_left(vllm, prompts):
    """The context has 128 tokens."""
    long = [{"role": "user", "content": "eggs " * 300}]
    (asked,) = token_ids(vllm.tokenizer, [prompts[0]])
    assert vllm.room([prompts[0], long])[0] == 128 - len(asked) > 0 > vllm.room([long])[0]
    found = answered(vllm, [long, prompts[0]], replace(GREEDY, max_new_tokens=32))
    assert found[0] == [""] and found[1] == answered(vllm, prompts[:1], GREEDY)[0]


def test_a_beam_search_finds_what_transformers_finds(vllm, adapter, prompts):
    beams = replace(GREEDY, decoding="beam", n_samples=3, batch_size=8, max_new_tokens=24)
    some = prompts[:20]
    with opened("hf", adapter) as hf:
        expected = answered(hf, some, beams)
    found = answered(vllm, some, beams)
    assert [len(set(texts)) for texts in found] == [3] * 20
    assert found[5] == answered(vllm, some, beams, done=set(range(20)) - {5})[0]
    assert agreement(found, expected) >= 0.95


def test_a_longer_answer_than_the_engine_was_made_for_gets_another_engine(adapter, prompts):
    with opened("vllm", adapter) as generator:
        short = answered(generator, prompts[:2], replace(GREEDY, max_new_tokens=2))
        long = answered(generator, prompts[:2], GREEDY)
    assert all(b.startswith(a) for (a,), (b,) in zip(short, long, strict=True))
    assert short != long


@pytest.mark.parametrize("full", [True, False])
def test_adapters_are_merged_once_and_answer_the_same(prompts, full):
    """With whole modules always, without where that is asked for, or by default on a CPU."""
    artifact = tuned(full=full)
    sampling = GREEDY if full else replace(GREEDY, merge_adapter=None)
    before = made()
    with opened("hf", artifact) as hf:
        expected = answered(hf, prompts, GREEDY)
    with opened("vllm", artifact) as generator:
        assert agreement(answered(generator, prompts, sampling), expected) >= 0.95
    ((folder, stamp),) = made().items() - before.items()
    with opened("vllm", artifact) as generator:
        answered(generator, prompts[:1], sampling)
    assert made()[folder] == stamp


def made() -> dict[Path, int]:
    """What was merged, and when."""
    found = site.merged_dir().glob("*/model/model.safetensors")
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_stopped_inference_goes_on_with_what_is_left(home, monkeypatch):
    """Through the command line: what is written stays, and all is scored in the end."""
    run = tuned(full=False).adapter
    assert run is not None
    words = [
        "--run",
        run.parent.name,
        *DATA,
        "--backend",
        "vllm",
        "--do_inference",
        "--do_evaluation",
    ]
    stops = []

    def check() -> None:
        if any(home.rglob("responses.jsonl")) and not stops:
            stops.append(True)
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "check", check)
        with pytest.raises(Interrupted):
            run_inference.main(words)
    (path,) = home.glob("outputs/math/small_sft-*/responses.jsonl")
    kept = path.read_text().splitlines()
    assert 0 < len(kept) < 12
    assert run_inference.main(words) == 0
    lines = path.read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(12))
    assert set(kept) <= set(lines)
    scores = json.loads((path.parent / "scores.json").read_text())
    assert (scores["prompts"], scores["samples"]) == (12, 3)


@pytest.mark.parametrize("merge", [None, False])
def test_a_kept_engine_answers_as_what_is_trained_goes_on(adapter, prompts, tmp_path, merge):
    """As two models in turn: it reads whole weights anew (on a CPU all are merged), or adapters."""
    other = trained_further(adapter)
    sampling = replace(GREEDY, merge_adapter=merge, max_new_tokens=16)
    some = prompts[:24]
    with closing(Beside(adapter, sampling, tmp_path / "beside", keep=True)) as beside:
        engines = []
        for artifact in (adapter, other, adapter):
            with opened("hf", artifact) as hf:
                expected = answered(hf, some, sampling)
            with beside.generator(partial(shutil.copytree, artifact.adapter)) as generator:
                assert agreement(answered(generator, some, sampling), expected) >= 0.9
                engines.append(generator._llm)
    assert len(set(map(id, engines))) == 1
    assert not (tmp_path / "beside").exists()


def trained_further(adapter: Artifact) -> Artifact:
    """An adapter whose answers differ: the weights of another one, twice as strong."""
    source, target = adapter.adapter, adapter.adapter.parent / "stronger"
    if not target.exists():
        shutil.copytree(source, target)
        weights = load_file(source / "adapter_model.safetensors")
        stronger = {name: 2 * w if "lora_B" in name else w for name, w in weights.items()}
        save_file(stronger, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return replace(adapter, adapter=target)


@pytest.mark.parametrize("keep", [True, False])
def test_pass_at_k_during_sft_changes_no_bit_of_it(home, tmp_path, keep):
    """Neither random numbers nor threads: an engine seeds and sets them when it starts."""
    common = {"lora_dropout": 0.1, "eval_steps": 4}
    rules = {"pass_at_k_targets": (1.0,), "pass_at_k_every": 2, "pass_at_k_prompts": 4,
             "pass_at_k_samples": 2, "pass_at_k_max_new_tokens": 8,
             "pass_at_k_backend": "vllm", "use_persistent_vllm": keep}  # fmt: skip
    losses = []
    for name, values in (("with", common | rules), ("without", common)):
        config = sft_config(
            model="small", dataset="arith", task="math", train_size=32, values=values
        )
        run = RunDirectory(tmp_path / name)
        sft_training.train(config, run, [])
        losses.append([(x["loss"], x["grad_norm"]) for x in run.metrics() if "loss" in x])
        steps = [x["step"] for x in run.metrics() if "pass@1" in x]
        assert steps == ([0, 2, 4] if name == "with" else [])
    assert losses[0] == losses[1]


def test_what_it_refuses_says_what_to_change(adapter, prompts):
    with opened("vllm", adapter) as generator, pytest.raises(StageFailed) as refused:
        answered(generator, prompts[:1], replace(GREEDY, gpu_memory_utilization=1.0))
    assert "--gpu_memory_utilization" in str(refused.value)
    with opened("vllm", adapter) as generator, pytest.raises(StageFailed) as refused:
        answered(generator, prompts[:1], replace(GREEDY, tensor_parallel_size=5))
    assert "--tensor_parallel_size" in str(refused.value)
    assert "--backend hf" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("disturbed", [1, STARTS])
def test_it_is_started_again_where_others_gave_memory_back(
    adapter, prompts, said, monkeypatch, disturbed
):
    """What vLLM says there is said by its real worker, once the model is loaded."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    real, left = CPUWorker.determine_available_memory, [AssertionError(GAVE_BACK)] * disturbed

    def measured(self: Any) -> int:
        if left:
            raise left.pop()
        return int(real(self))

    monkeypatch.setattr(CPUWorker, "determine_available_memory", measured)
    with opened("vllm", adapter) as generator:
        if disturbed == STARTS:
            with pytest.raises(StageFailed, match="start it again: another process"):
                answered(generator, prompts[:1], GREEDY)
        else:
            assert len(answered(generator, prompts[:1], GREEDY)) == 1
    assert said == [f"warning: {AGAIN}"] * min(disturbed, STARTS - 1)
    assert not left


def test_heads_of_a_size_that_it_computes_wrongly_are_refused(prompts):
    assert run_pretrain.main(["--model", "odd"]) == 0
    with (
        opened("vllm", artifact_of(model_config("odd"))) as generator,
        pytest.raises(StageFailed, match="heads of 24 dimensions, and on a CPU takes 32, 64,"),
    ):
        answered(generator, prompts[:1], GREEDY)
