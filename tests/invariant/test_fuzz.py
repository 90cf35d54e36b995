"""Malformed rows, sources, configs, stages, plans and models, over 300, thrown at whatever reads
them: each ends with a result or with one line, never with a traceback.

They are made from good ones by a seed. TUNING_FUZZ_SEED=7 makes others; a failure names its case.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_site import COLLECTIONS, use
from tuning import cli, run_sweetspot_pipeline, submit
from tuning import config as site
from tuning.config import CHAT_TEMPLATES, DatasetEntry
from tuning.data import arith, prepare, train_dataset
from tuning.data.jsonl import JsonLines
from tuning.data.loaders import forget
from tuning.data.preparation import manifest_of
from tuning.data.rows import ANSWERS
from tuning.engine import sources
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.entry import ending
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.script import ArrayJob, render
from tuning.phases.evaluate import check_evaluation
from tuning.phases.work import planned
from tuning.plan import KINDS, write_stage
from tuning.runs.json_text import parse_object
from tuning.tasks.registry import task
from tuning.training.config_training import model_config, preference_config, sft_config
from tuning.weights.artifact import artifact_of
from tuning.weights.loading import open_model, open_tokenizer, save

pytestmark = pytest.mark.unit

SEED = os.environ.get("TUNING_FUZZ_SEED", "0")
LONG_NUMBER = "@a number of 5,000 digits@"
ODD: list[Any] = [
    None, True, False, 0, -1, 7, 3.5, -0.0, float("nan"), float("inf"), 10**30, LONG_NUMBER,
    "", " ", "x", "nan", "1e400", "0016", "1:30", "yes", "null", "~", "../x", "-x", "a/b", "a b%",
    "x" * 300, "\x00", "\x1b[31m", "\ud800", "ü\u2028", "{}", "*a", [], {}, [[]], [None], [1, "a"],
    {"a": {}}, {"": 1}, {"role": "user"}, [{"role": "user", "content": 3}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
]  # fmt: skip
DEEP = "[" * 150 + "]" * 150
BYTES = b'{}[]:,"\\\n\r\t\x00\xff\xc3&*!%@`|>#-?~<e9.'
Case = Callable[[random.Random, Path], None]


def mutated(value: Any, rng: random.Random, odd: list[Any] = ODD) -> Any:
    """A JSON value with one of its parts replaced, left out, doubled or called otherwise."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(odd)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, made = rng.choice(keys), value.copy()
    how = rng.random()
    if how < 0.12:
        del made[key]
    elif how < 0.2 and isinstance(made, dict):
        made[str(rng.choice(odd))] = made[key]
    elif how < 0.2:
        made.append(made[key])
    else:
        made[key] = mutated(made[key], rng, odd)
    return made


def scrambled(text: bytes, rng: random.Random) -> bytes:
    """Text with a few bytes cut, doubled, changed or added."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 1, 1, 2, 8, 40]))
        piece = rng.choice([b"", text[start:end] * 2, bytes([rng.choice(BYTES)]), DEEP.encode()])
        text = text[:start] + piece + text[end:]
    return rng.choice([text, text, text[: rng.randrange(len(text) + 1)], b"\xef\xbb\xbf" + text])


def as_json(value: Any) -> bytes:
    return json.dumps(value).replace(f'"{LONG_NUMBER}"', "9" * 5000).encode()


def as_yaml(value: Any) -> bytes:
    text = yaml.safe_dump(value, allow_unicode=False).replace(LONG_NUMBER, "9" * 5000)
    return text.encode("utf-8", "replace")


def malformed(value: Any, rng: random.Random, write: Callable[[Any], bytes]) -> bytes:
    """A good value as malformed text."""
    for _ in range(rng.randint(0, 2)):
        value = mutated(value, rng) if isinstance(value, dict | list) else value
    text = write(value)
    return scrambled(text, rng) if rng.random() < 0.5 else text


def pools() -> dict[str, list[dict[str, Any]]]:
    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    return {
        "sft": [
            {"prompt": "1 + 1?", "completion": "2"},
            {"prompt": [turn("user", "1 + 2?")], "completion": [turn("assistant", "3")]},
        ],
        "validation": [{"prompt": "2 + 1?", "completion": "3"}],
        "preference": [{"prompt": "p?", "chosen": "a", "rejected": "b", "answer": "#### 7"}],
        "test": [{"prompt": "t?", "answer": n} for n in ("12", 3.5)],
    }


def rows(rng: random.Random, root: Path) -> None:
    files = {}
    for pool, good in pools().items():
        lines = [as_json(row) for row in good]
        if rng.random() < 0.6:
            place = rng.randrange(len(lines))
            lines[place] = malformed(good[place], rng, as_json)
        (root / f"{pool}.jsonl").write_bytes(b"\n".join(lines))
        files[pool] = str(root / f"{pool}.jsonl")
    entry = DatasetEntry(name="mine", loader="jsonl", files=files)
    opened = JsonLines(entry)
    for pool, answers in ANSWERS.items():
        found = opened.pool(pool)
        if {"prompt", *answers} <= opened.columns(pool):
            json.dumps(found, ensure_ascii=False).encode()
            for row in found:
                train_dataset.prompt_text(row)
    grader = task("math")
    for pool in ("test", "preference"):
        if set(grader.columns) <= opened.columns(pool):
            found = opened.pool(pool)
            grader.require_gradable(found, lambda number: f"row {number}")
            assert all(grader.grade("#### 7", row) is not None for row in found)


SOURCES: dict[str, list[dict[str, Any]]] = {
    "sft": [
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
            ]
        },
        {"prompt": "1 + 2?", "completion": "3", "answer": "3"},
    ],
    "preference": [
        {"prompt": "1 + 3?", "completion": "4", "label": True},
        {"prompt": "1 + 3?", "completion": "5", "label": False},
        {"prompt": "1 + 4?", "chosen": "5", "rejected": "6"},
        {
            side: [{"role": "user", "content": "1 + 5?"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "6"), ("rejected", "7"))
        },
    ],
    "test": [{"prompt": "1 + 6?", "answer": n} for n in ("7", 8)],
}


NO_PLACES = [value for value in ODD if value not in ("~", "a/b")]
"""Odd values without those that mean a home folder or a dataset of the hub."""


def published(rng: random.Random, root: Path) -> None:
    """A dataset by lines of collections.yaml, from files that are read through `datasets`."""
    sources = {}
    for kind, good in SOURCES.items():
        lines = [as_json(row) for row in good]
        if rng.random() < 0.4:
            place = rng.randrange(len(lines))
            lines[place] = malformed(good[place], rng, as_json)
        path = root / f"{kind}{'.csv' if rng.random() < 0.05 else '.jsonl'}"
        path.write_bytes(b"\n".join(lines))
        sources[kind] = path.name if rng.random() < 0.95 else str(rng.choice(NO_PLACES))
    content = yaml.safe_load(COLLECTIONS)
    content["datasets"]["mine"] = {"loader": "published", "columns": {"prompt": "q"}} | sources
    if rng.random() < 0.3:
        content["datasets"]["mine"] = mutated(content["datasets"]["mine"], rng, NO_PLACES)
    (root / "collections.yaml").write_bytes(as_yaml(content))
    site._load.cache_clear()
    forget()
    prepare.main(["mine"])
    entry = site.collections().dataset("mine")
    manifest = manifest_of("mine")
    assert manifest is not None
    for pool in manifest["pools"]:
        for row in train_dataset.rows(entry, pool):
            train_dataset.prompt_text(row)
    if "preference" in manifest["pools"] and train_dataset.is_unpaired(entry):
        train_dataset.require_labels(entry, None, "kto")


def instructions(rng: random.Random, root: Path) -> None:
    good = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    path = root / "row.json"
    path.write_bytes(malformed(good, rng, as_json))
    row = parse_object(path.read_text(encoding="utf-8", errors="replace"), "row.json:1")
    if {*task("instruction").columns} <= row.keys():
        task("instruction").require_gradable([row], lambda number: f"row {number}")


def tokens(rng: random.Random, root: Path) -> None:
    good = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "len": 3},
        {"input_ids": [4, 5]},
        {"text": "one and two"},
    ]
    row = rng.choice(good)
    path = root / f"data{rng.choice(['.jsonl', '.jsonl', '.txt'])}"
    path.write_bytes(as_json(row) + b"\n" + malformed(row, rng, as_json))
    kind = sources.kind_of(path)
    if kind == "rows":
        sources.read_rows(path)
    elif kind == "documents":
        sources.read_token_documents(path)
    else:
        "".join(sources.read_texts(path)).encode()


EXPERIMENT = ["--dataset", "arith", "--task", "math", "--total_data", "64", "--sft_data", "32",
              "--perplexity_thresholds", "5.0", "--do_sft", "--do_dpo", "--do_inference",
              "--dry_run", "--launcher"]  # fmt: skip


def collections(rng: random.Random, root: Path) -> None:
    path = root / "collections.yaml"
    path.write_bytes(malformed(yaml.safe_load(COLLECTIONS), rng, as_yaml))
    site._load.cache_clear()
    launcher = rng.choice(["local", "slurm"])
    model = rng.choice([*site.collections().models, "tiny"])
    run_sweetspot_pipeline.main(["--model", model, *EXPERIMENT, launcher])


CLUSTER = {
    "defaults": {"partition": "main", "cpus": 4, "mem": "8G", "time": "12:00:00", "gres": "gpu:1",
                 "setup": ["module load x"], "options": ["--exclusive"], "throttle": 3},
    "stages": {"pretrain": {"nodes": 2, "processes": 2}, "report": {"time": "10"},
               "sft": {"account": "a", "offline": True}},
}  # fmt: skip


def cluster(rng: random.Random, root: Path) -> None:
    path = root / "cluster.yaml"
    path.write_bytes(malformed(CLUSTER, rng, as_yaml))
    made = Cluster({}, path=path, environ={})
    job = ArrayJob(token="t.1.sft", count=2, code=root, tasks=root / "x.json", output=root)
    for kind in KINDS:
        render(job, made.resources(kind, joined=kind in ("pretrain", "sft"))).encode()


SUBMITTED = {
    "dataset": "arith", "task": "math", "base_model": ["tiny"], "sft_ratio": [0, 0.5, 1],
    "pft_method": ["dpo", "kto"], "train_sizes": [64, 128], "do_training": True,
    "do_sft_first": "yes", "sft_learning_rate": 1e-3, "seeds": [1, 2], "experiment": "e",
    "grid": {"prompts": [8, 16]},
}  # fmt: skip


def experiment(rng: random.Random, root: Path) -> None:
    path = root / "experiment.yaml"
    path.write_bytes(malformed(SUBMITTED, rng, as_yaml))
    submit.main([str(path), "--dry_run", "--launcher", rng.choice(["local", "slurm"])])


def plan() -> Any:
    words = ["--model", "tiny", *EXPERIMENT, "local", "--experiment", "e"]
    return run_sweetspot_pipeline.plan_of(run_sweetspot_pipeline.parser().parse_args(words))


def stage(rng: random.Random, root: Path) -> None:
    chosen = rng.choice(plan().stages)
    path = root / "stage.json"
    write_stage(path, chosen)
    path.write_bytes(malformed(json.loads(path.read_text()), rng, as_json))
    work = planned(["--stage", str(path)], chosen.kind)
    assert work is not None
    if work.evaluation is not None:
        check_evaluation(work.evaluation, work.options)
    if work.run is not None:
        work.run.identity(work.name)


def plans(rng: random.Random, root: Path) -> None:
    folder = root / "home" / "outputs" / "reports" / "e"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_bytes(malformed(plan().to_json(), rng, as_json))
    words = rng.choice([["status", "e"], ["status", "--json"], ["report", "e"], ["cancel", "e"],
                        ["logs", "tiny"], ["clean", "--dry_run"]])  # fmt: skip
    cli.main(words)


def run_directories(rng: random.Random, root: Path) -> None:
    """Files of a run, which a disk or a person may have damaged."""
    made = plan()
    sft = next(stage for stage in made.stages if stage.role == "sft")
    folder = root / "home" / "models" / sft.name
    reports = root / "home" / "outputs" / "reports" / "e"
    for path in (folder, reports):
        path.mkdir(parents=True)
    (reports / "plan.json").write_text(json.dumps(made.to_json()))
    phase = {"state": "done", "seconds": 1.0}
    good = {
        "config.json": {
            "format": 2, "run_name": sft.name, "kind": "sft", "hash": sft.hash, "parent": None,
            "artifact": "adapter", "settings": sft.run, "hashed": {}, "provenance": {},
        },
        "status.json": {"state": "done", "reason": "", "phases": {"train": phase}},
        "result.json": {"global_step": 2, "data_points_seen": 32, "data_used": 32,
                        "sweetspots": {"ppl-5.0": {"state": "unreached", "best": 6.0}}},
        "metrics.jsonl": {"step": 1, "loss": 1.0, "perplexity": 2.0},
    }  # fmt: skip
    damaged = rng.choice(list(good))
    for name, value in good.items():
        text = malformed(value, rng, as_json) if name == damaged else as_json(value)
        (folder / name).write_bytes(text + b"\n")
    words = rng.choice([["status", "e"], ["report", "e"], ["clean", "--dry_run", "--orphans"]])
    cli.main(words)


SMALL: list[Any] = [
    None, True, 0, -1, 3, 7.5, "", "x", "../x", "\x00", [], {}, [1], {"a": 1}, "gelu", "llama",
]  # fmt: skip
"""Odd values without those that make a model of astronomic size."""
SHAPE = ModelConfig(
    block_size=64, vocab_size=270, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=8, intermediate_size=16,
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 20), 270, template)
    folder = tmp_path_factory.mktemp("whole") / "model"
    save(build(SHAPE, seed=0, eos_token_id=1, pad_token_id=0), tokenizer, folder)
    return folder


def damage(path: Path, original: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    how = rng.random()
    if how < 0.1:
        path.unlink()
    elif how < 0.2:
        path.write_bytes(rng.choice([POINTER, b"", b"PK\x03\x04"]))
    elif how < 0.25:
        path.unlink()
        path.mkdir()
    elif how < 0.7 and path.suffix == ".json" and content == (original / path.name).read_bytes():
        path.write_bytes(as_json(mutated(json.loads(content), rng, SMALL)))
    else:
        start = rng.randrange(len(content) + 1)
        kept = content[:start] + rng.choice([b"", b"\x00", b"}"]) + content[start + 1 :]
        path.write_bytes(rng.choice([kept, content[:start]]))


def models(rng: random.Random, root: Path) -> None:
    folder = root / "model"
    for _ in range(rng.randint(1, 2)):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        damage(rng.choice(files), root / "original", rng)
    artifact = artifact_of(model_config(str(folder)))
    open_tokenizer(artifact)
    open_model(artifact)


def settings(rng: random.Random, root: Path) -> None:
    """Settings as collections.yaml and flags give them, by their names."""
    content = yaml.safe_load(COLLECTIONS)
    chosen = content["models"]["tiny"]["settings"]
    section = rng.choice(list(chosen))
    name = rng.choice([*chosen[section], "max_seq_length", "seed", "temperature", "lora_r"])
    chosen[section][name] = rng.choice(ODD)
    (root / "collections.yaml").write_bytes(as_yaml(content))
    site._load.cache_clear()
    wanted = {"model": "tiny", "dataset": "arith", "task": "math", "train_size": 64}
    assert sft_config(**wanted).run_name
    for method in ("dpo", "kto", "grpo"):
        assert preference_config(**wanted, pft_method=method).steps(64) >= 0
    sampling = sampling_config("tiny")
    assert evaluation_config(
        model_config("tiny"), dataset="arith", task="math", sampling=sampling
    ).hash


CASES: dict[Case, int] = {
    rows: 55, published: 30, instructions: 20, tokens: 35, collections: 50, settings: 25,
    cluster: 30, experiment: 30, stage: 20, plans: 15, run_directories: 15, models: 25,
}  # fmt: skip


def test_there_are_at_least_300() -> None:
    assert sum(CASES.values()) >= 300


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        yield said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_malformed_is_a_result_or_one_line(monkeypatch, tmp_path, whole, case) -> None:
    failed = []
    for number in range(CASES[case]):
        root = tmp_path / str(number)
        root.mkdir()
        use(monkeypatch, root)
        site._load.cache_clear()
        if case is models:
            shutil.copytree(whole, root / "model")
            (root / "original").symlink_to(whole)
        rng = random.Random(f"{SEED} {case.__name__} {number}")
        with quiet() as said:
            try:
                found = ending(lambda rng=rng, root=root: case(rng, root))
            except Exception:
                failed.append(f"case {number} of seed {SEED}: {traceback.format_exc(limit=-4)}")
                continue
        errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        if found.code and (len(errors) != 1 or len(errors[0]) > 2000):
            failed.append(f"case {number} of seed {SEED}: {said.getvalue()!r}")
        shutil.rmtree(root)
    assert not failed, "\n\n".join(failed)
