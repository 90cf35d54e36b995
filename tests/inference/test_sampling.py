"""Sampling with a small random model: interrupted anywhere, it ends with the same file."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.config import CHAT_TEMPLATES, DatasetEntry
from tuning.data import arith, train_dataset
from tuning.data.loaders import LOADERS
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.evaluation.scoring import score
from tuning.inference.generator import seed_of
from tuning.inference.hf_engine import HFGenerator
from tuning.inference.sampling import _asked, sample
from tuning.runs import interrupt
from tuning.runs.errors import Interrupted, UserError
from tuning.runs.rundir import RunDirectory
from tuning.tasks import math
from tuning.tasks.base import Task
from tuning.tasks.registry import TASKS
from tuning.training.config_training import model_config

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=128, vocab_size=300, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip
ARITH = DatasetEntry(name="arith", loader="arith")
SAMPLING = {"prompts": 10, "n_samples": 3, "k_values": (1,), "max_new_tokens": 6, "batch_size": 4}


class Counting(HFGenerator):
    """The real engine, which remembers the seeds and prompts that it was given."""

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        self.calls: list[tuple[int, int]] = []

    def generate(self, prompts, sampling, run_hash, first):
        self.calls.append((self.seed(sampling, run_hash, first), len(prompts)))
        return super().generate(prompts, sampling, run_hash, first)


class Rows:
    """A dataset of these rows."""

    def __init__(self, rows):
        self.rows = rows

    def version(self, pools):
        return "1"

    def pool(self, name):
        return self.rows

    def size(self, name):
        return len(self.rows)

    def columns(self, name):
        return frozenset(self.rows[0])


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, tmp_path_factory.mktemp("site"))
        yield


@pytest.fixture(scope="module")
def engine():
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    tokenizer = train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)
    model = build(
        SHAPE, seed=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return Counting(model, tokenizer)


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory) -> bytes:
    """What an inference that nobody disturbed leaves."""
    return sampled(tmp_path_factory.mktemp("straight"), engine)


@pytest.fixture
def generator(engine) -> Counting:
    engine.calls.clear()
    return engine


def config(**changes):
    return evaluation_config(
        model_config("tiny"), run="run", run_hash="a", dataset="arith", task="math",
        sampling=sampling_config("tiny", SAMPLING | changes),
    )  # fmt: skip


def sampled(folder: Path, generator: Counting, **changes) -> bytes:
    folder.mkdir(exist_ok=True)
    sample(RunDirectory(folder), config(**changes), generator)
    return (folder / "responses.jsonl").read_bytes()


def test_every_prompt_has_its_answers_in_order(tmp_path, generator):
    rows = [json.loads(line) for line in sampled(tmp_path, generator).splitlines()]
    test = train_dataset.rows(ARITH, "test", 10)
    assert [row["index"] for row in rows] == list(range(10))
    assert [row["prompt"] for row in rows] == [train_dataset.prompt_text(row) for row in test]
    assert [row["answer"] for row in rows] == [row["answer"] for row in test]
    assert all(len(row["responses"]) == 3 for row in rows)
    assert len({text for row in rows for text in row["responses"]}) > 15
    assert [count for _, count in generator.calls] == [4, 4, 2]


def test_a_line_has_the_columns_that_the_task_grades_by(monkeypatch, tmp_path, generator):
    row = {"instructions": ["length"], "kwargs": [{"words": 3}], "key": 7}
    rows = [{"prompt": [{"role": "user", "content": f"{n}?"}], **row} for n in range(2)]
    monkeypatch.setitem(LOADERS, "arith", lambda entry: Rows(rows))
    columns = ("instructions", "kwargs")
    graded = Task(name="math", columns=columns, accepts=lambda row: None, grade=math.grade)
    monkeypatch.setitem(TASKS, "math", graded)
    lines = [json.loads(line) for line in sampled(tmp_path, generator, prompts=2).splitlines()]
    assert [line["prompt"] for line in lines] == ["0?", "1?"]
    for line in lines:
        assert {column: line[column] for column in columns} == {c: row[c] for c in columns}
        assert list(line) == ["index", "prompt", *columns, "responses"]


def test_prompts_beyond_the_context_are_counted_and_marked(monkeypatch, tmp_path, engine, said):
    """The model was made for 128 tokens."""
    texts = ["2 + 3?", "eggs " * 200, "eggs " * 400, "one " * 30]
    rows = [{"prompt": [{"role": "user", "content": t}], "answer": "5"} for t in texts]
    monkeypatch.setitem(LOADERS, "arith", lambda entry: Rows(rows))
    room = engine.room([row["prompt"] for row in rows])
    assert room[0] > 100 and room[3] > 0 > room[1] > room[2]
    lines = sampled(tmp_path, engine, prompts=4, max_new_tokens=room[3] + 1).splitlines()
    assert ["beyond_context" in json.loads(line) for line in lines] == [False, True, True, False]
    assert said == [
        "warning: 2 of 4 test prompts are longer than the context of the model, by up to "
        f"{-room[2]} tokens: the answers to them mean nothing",
        f"warning: 1 of 4 test prompts leave less than max_new_tokens ({room[3] + 1}) of the "
        f"context of the model, one of them {room[3]}",
    ]
    run = RunDirectory(tmp_path)
    assert score(run, config(prompts=4))["prompts_beyond_context"] == 2


def test_worked_examples_stand_before_the_prompts_of_a_base_model(tmp_path, engine):
    asked = []

    class Listening(Counting):
        def generate(self, prompts, *more):
            asked.extend(prompts)
            return super().generate(prompts, *more)

    sampling = sampling_config("tiny", SAMPLING | {"few_shot": 2, "max_new_tokens": 2})
    base, trained = (
        evaluation_config(
            model_config("tiny"), dataset="arith", task="math", sampling=sampling, run=run,
            run_hash=run,
        )
        for run in (None, "a")
    )  # fmt: skip
    assert (base.sampling.few_shot, trained.sampling.few_shot, trained.examples) == (2, 0, None)
    plain = evaluation_config(
        model_config("tiny"), dataset="arith", task="math",
        sampling=sampling_config("tiny", SAMPLING | {"max_new_tokens": 2}),
    )  # fmt: skip
    assert base.hash != plain.hash
    sample(RunDirectory(tmp_path), base, Listening(engine.model, engine.tokenizer))
    examples = train_dataset.rows(ARITH, "sft", 2)
    turns = [turn for row in examples for turn in row["prompt"] + row["completion"]]
    tests = train_dataset.rows(ARITH, "test", 10)
    assert asked == [turns + row["prompt"] for row in tests]
    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [train_dataset.prompt_text(row) for row in tests]


def test_a_system_message_stays_in_front_of_worked_examples(monkeypatch, tmp_path):
    def row(text, **columns):
        return {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": text}]
        } | columns

    rows = [row("1?", completion=[{"role": "assistant", "content": "one"}], answer="1")]
    monkeypatch.setitem(LOADERS, "arith", lambda entry: Rows(rows))
    sampling = sampling_config("tiny", SAMPLING | {"few_shot": 1, "prompts": 1})
    base = evaluation_config(model_config("tiny"), dataset="arith", task="math", sampling=sampling)
    (asked,) = _asked(base, rows)
    assert [m["content"] for m in asked] == ["s", "1?", "one", "1?"]


def test_at_temperature_0_the_most_likely_answer_is_given(tmp_path, generator):
    greedy = {"temperature": 0.0, "n_samples": 1, "k_values": (1,)}
    assert sampled(tmp_path / "a", generator, **greedy) == sampled(
        tmp_path / "b", generator, **greedy
    )
    one, other = (
        sampled(tmp_path / str(seed), generator, **greedy, sampling_seed=seed) for seed in (1, 2)
    )
    assert one == other
    with pytest.raises(UserError, match="temperature 0 gives one answer, and n_samples is 3"):
        config(temperature=0.0)


def test_the_same_run_gives_the_same_answers_and_another_others(tmp_path, generator, whole):
    assert sampled(tmp_path / "a", generator) == whole
    assert sampled(tmp_path / "b", generator, sampling_seed=1) != whole


def test_batches_have_seeds_of_their_own(tmp_path, generator):
    sampled(tmp_path / "a", generator)
    seeds = [seed for seed, _ in generator.calls]
    assert len(set(seeds)) == 3
    assert seeds == [seed_of(config().hash, 0, number) for number in range(3)]
    many = {seed_of(h, s, b) for h in ("a", "b") for s in (0, 1) for b in range(50)}
    assert len(many) == 200
    assert all(0 <= seed < 2**63 for seed in many)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.2, 0.55, 0.8, 0.999])
def test_cut_anywhere_it_continues_to_the_same_file(tmp_path, generator, whole, kept):
    cut = int(len(whole) * kept)
    (tmp_path / "responses.jsonl").write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    assert sampled(tmp_path, generator) == whole
    assert len(generator.calls) == 3 - lines // 4


@pytest.mark.parametrize("lines", [1, 4, 7, 8, 9])
def test_cut_at_the_end_of_a_line_only_whole_batches_count(tmp_path, generator, whole, lines):
    kept = b"".join(whole.splitlines(keepends=True)[:lines])
    (tmp_path / "responses.jsonl").write_bytes(kept)
    assert sampled(tmp_path, generator) == whole
    assert len(generator.calls) == 3 - lines // 4


def test_a_finished_inference_samples_nothing(tmp_path, generator, whole):
    (tmp_path / "responses.jsonl").write_bytes(whole)
    assert sampled(tmp_path, generator) == whole
    assert generator.calls == []


def test_asked_to_stop_it_ends_between_batches(tmp_path, generator, whole):
    class Stopping(Counting):
        def generate(self, prompts, sampling, run_hash, first):
            interrupt._asked.set()
            return super().generate(prompts, sampling, run_hash, first)

    stopping = Stopping(generator.model, generator.tokenizer)
    try:
        with pytest.raises(Interrupted):
            sampled(tmp_path, stopping)
    finally:
        interrupt.reset()
    assert len((tmp_path / "responses.jsonl").read_bytes().splitlines()) == 4
    assert sampled(tmp_path, generator) == whole


def test_progress_is_told_to_the_end(tmp_path, generator):
    sampled(tmp_path, generator)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["phase"], progress["at"], progress["of"]) == ("infer", 10, 10)


def test_an_answer_ends_with_its_turn_whatever_the_base_model_ends_with(engine):
    """A base of the hub ends documents with another token than the one that ends a turn."""
    tokenizer = engine.tokenizer
    model = build(SHAPE, seed=0, eos_token_id=5, pad_token_id=tokenizer.pad_token_id)
    generator = HFGenerator(model, tokenizer)
    assert set(generator.ends) == {5, tokenizer.eos_token_id}
    generated = []
    original = model.generate

    def generate(**kwargs):
        generated.append(original(**kwargs))
        return generated[-1]

    model.generate = generate
    rows = train_dataset.rows(ARITH, "test", 4)
    sampling = sampling_config("tiny", {**SAMPLING, "n_samples": 64, "max_new_tokens": 64})
    generator.generate([row["prompt"] for row in rows], sampling, run_hash="a", first=0)
    answers = generated[0][:, -64:].tolist()
    ended = 0
    for tokens in answers:
        ends = [i for i, token in enumerate(tokens) if token in generator.ends]
        if ends:
            ended += 1
            assert set(tokens[ends[0] + 1 :]) <= {tokenizer.pad_token_id}
    assert ended > 10
