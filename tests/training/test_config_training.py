"""SFT and preference runs: their names, what they hash, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.run_configs import fork, pt, sft, suffixed
from tests.small_site import COLLECTIONS, use
from tuning.flags import plain, restore
from tuning.runs import provenance
from tuning.runs.errors import UserError
from tuning.training import backend
from tuning.training.config_training import (
    PT_PARTS,
    SFT_PARTS,
    SFTRunConfig,
    model_config,
    preference_config,
    sft_config,
)
from tuning.training.parents import parent_of

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("model", "label"),
    [("tiny", "tiny"), ("big", "big"), ("Qwen/Qwen3-0.6B", "Qwen--Qwen3-0.6B")],
)
def test_a_run_with_the_defaults_of_its_model_has_the_plain_name(model, label):
    assert sft(model).run_name == f"{label}_sft-arith-500"
    assert pt(model=model).run_name == f"{label}_pt-arith-300"
    assert pt("kto", model=model).run_name == f"{label}_pt-arith-300_kto"
    assert pt("grpo", model=model).run_name == f"{label}_pt-arith-300_grpo"


@pytest.mark.parametrize(("method", "tail"), [("dpo", ""), ("kto", "_kto"), ("grpo", "_grpo")])
def test_a_preference_run_after_sft_is_named_after_it(method, tail):
    parent = sft()
    name = f"tiny_sft-arith-500_pt-arith-300{tail}"
    assert pt(method, parent_of(parent, parent.run_name)).run_name == name


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
def test_a_fork_is_named_after_its_sweetspot(method):
    config = fork(method)
    assert config.is_fork
    assert config.run_name == f"tiny_sweetspot-ppl-2.0_{method}-arith-remaining"
    assert config.named(520) == f"tiny_sweetspot-ppl-2.0_{method}-arith-520"
    assert fork(method, "ppl-1.25").named(1) == f"tiny_sweetspot-ppl-1.25_{method}-arith-1"
    patient = f"tiny_sweetspot-ppl-2@0.02_{method}-arith-1"
    assert fork(method, "ppl-2@0.02").named(1) == patient


def test_a_fork_of_other_sizes_and_rules_has_the_plain_name_and_another_hash():
    of = sft(size=400, perplexity_thresholds=(2.0, 1.5))
    assert fork(of=of).run_name == fork().run_name
    assert fork(of=of).hash != fork().hash


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-3},
        {"lora_r": 8},
        {"max_seq_length": 512},
        {"perplexity_thresholds": (2.0,)},
        {"perplexity_patience": ("2:0.02",)},
        {"eval_steps": 3},
        {"optimizer": "sgd"},
        {"dtype": "bfloat16"},
        {"full_modules": ("lm_head",)},
    ],
    ids=str,
)
def test_a_setting_that_the_name_does_not_show_puts_the_hash_behind(values):
    config = sft(**values)
    assert config.run_name == suffixed("tiny_sft-arith-500", config)
    assert config.hash != sft().hash


@pytest.mark.parametrize("values", [{"beta": 0.5}, {"num_train_epochs": 3.0}], ids=str)
def test_so_it_does_for_preference_runs_and_forks(values):
    config = pt("kto", **values)
    assert config.run_name == suffixed("tiny_pt-arith-300_kto", config)
    config = fork(**values)
    assert config.run_name == suffixed("tiny_sweetspot-ppl-2.0_dpo-arith-remaining", config)
    assert config.named(520) == suffixed("tiny_sweetspot-ppl-2.0_dpo-arith-520", config)


def test_a_seed_is_part_of_the_name_and_a_hash_follows_only_for_the_rest():
    assert sft(seed=7).run_name == "tiny_sft-arith-500_seed-7"
    assert sft(seed=42) == sft() and sft(seed=7).hash != sft().hash
    changed = sft(seed=7, lora_r=8)
    assert changed.run_name == suffixed("tiny_sft-arith-500_seed-7", changed)
    assert pt("kto", seed=7).run_name == "tiny_pt-arith-300_kto_seed-7"
    assert fork(seed=7).run_name == "tiny_sweetspot-ppl-2.0_dpo-arith-remaining_seed-7"
    of_another = fork(of=sft(size=400, seed=7))
    assert of_another.run_name == suffixed(fork().run_name, of_another)


def test_what_a_parent_does_not_show_stands_behind_the_names_of_its_children():
    other = sft(learning_rate=1e-3)
    forked = fork(of=sft(learning_rate=1e-3, perplexity_thresholds=(2.0,)))
    assert forked.named(5) == suffixed("tiny_sweetspot-ppl-2.0_dpo-arith-5", forked)
    after = pt("kto", parent_of(other, other.run_name))
    assert after.run_name == f"tiny_sft-arith-500-{other.hash[:8]}_pt-arith-300_kto"


def test_a_value_that_is_the_default_is_no_change():
    assert sft(learning_rate=5e-3, eval_steps=5).run_name == "tiny_sft-arith-500"
    assert pt(beta=0.1).run_name == "tiny_pt-arith-300"


def test_a_local_folder_is_named_by_its_last_part(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert sft(str(folder)).run_name == "my-model_sft-arith-500"


def test_a_model_that_collections_yaml_finds_in_a_folder_keeps_its_key(monkeypatch, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    entry = {"path": str(folder), "chat_template": "chatml", "settings": {"sft": {"seed": 7}}}
    content = yaml.safe_load(COLLECTIONS)
    content["models"]["mine"] = entry
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, yaml.safe_dump(content))
    config = sft("mine")
    assert (config.model.source, config.training.seed) == ("local", 7)
    assert config.run_name == "mine_sft-arith-500"


def test_defaults_are_those_of_the_field():
    config, preference = sft("big"), pt(model="big")
    training = config.training
    assert (training.num_train_epochs, training.learning_rate) == (2.0, 5e-5)
    assert training.effective_batch_size == preference.training.effective_batch_size == 16
    assert (preference.training.learning_rate, preference.training.beta) == (5e-6, 1.0)
    assert preference.training.num_train_epochs == 2.0
    for lora in (config.lora, preference.lora):
        assert (lora.lora_r, lora.lora_alpha) == (32, 32)
        assert set(lora.target_modules) == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        }  # fmt: skip
        assert lora.full_modules == ("embed_tokens", "lm_head")
    assert config.model.chat_template == "chatml"


def test_yaml_beats_defaults_and_flags_beat_yaml():
    assert sft().training.learning_rate == 5e-3
    assert sft(learning_rate=1e-3).training.learning_rate == 1e-3
    assert pt().training.beta == pt("kto").training.beta == 0.1
    assert pt().training.learning_rate == 5e-6
    assert pt("grpo").training.learning_rate == 5e-4
    assert [pt(m).artifact_form for m in ("dpo", "kto", "grpo")] == ["adapter", "adapter", "full"]


def test_every_flag_has_one_name_across_the_parts():
    for parts in (SFT_PARTS, PT_PARTS):
        names = [name for part in parts for name in part.__dataclass_fields__]
        assert len(set(names)) == len(names)


def test_aliases_make_the_same_run():
    named = {"model": "tiny", "dataset": "arith", "train_size": 500}
    a, b = (sft_config(task=task, **named) for task in ("math", "gsm8k"))
    assert a == b
    a, b = (preference_config(task=t, pft_method="dpo", **named) for t in ("math", "gsm8k"))
    assert a == b


@pytest.mark.parametrize("values", [{"micro_batch_size": 8}, {"save_steps": 7}], ids=str)
def test_how_a_run_is_carried_out_does_not_count(values):
    assert sft(**values).hash == sft().hash
    assert sft(**values).run_name == sft().run_name
    assert pt(**values).hash == pt().hash
    assert fork(**values).run_name == fork().run_name
    assert sft(**values) != sft()


def test_everything_else_does():
    base = sft()
    others = [
        sft("big"),
        sft(size=501),
        sft(effective_batch_size=64),
        sft(warmup_ratio=0.2),
        sft(dtype="float32"),
        sft(validation_size=3),
        sft(perplexity_thresholds=(2.0,)),
        sft(perplexity_thresholds=(2.0,), early_stop=False),
        sft(chat_template="chatml"),
        replace(base, dataset=replace(base.dataset, version="2")),
        replace(base, model=replace(base.model, base_hash="0")),
    ]
    assert len({config.hash for config in [base, *others]}) == len(others) + 1


def test_the_parent_the_method_and_the_budget_count():
    of = sft(perplexity_thresholds=(2.0, 1.6))
    hashes = {
        pt().hash,
        pt("kto").hash,
        pt(parent=parent_of(of, "x")).hash,
        pt(parent=parent_of(sft(seed=1), "x")).hash,
        pt(parent=parent_of(of, "x", "ppl-2.0", 1000), size=None).hash,
        pt(parent=parent_of(of, "x", "ppl-1.6", 1000), size=None).hash,
        pt(parent=parent_of(of, "x", "ppl-2.0", 1001), size=None).hash,
        pt("kto", parent_of(of, "x", "ppl-2.0", 1000), size=None).hash,
    }
    assert len(hashes) == 8


def test_the_name_of_the_parents_directory_does_not():
    assert pt(parent=parent_of(sft(), "a")).hash == pt(parent=parent_of(sft(), "b")).hash


def test_the_pretraining_of_the_base_does(monkeypatch, tmp_path):
    before = sft().hash
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("max_steps: 7", "max_steps: 8"))
    assert sft().hash != before
    assert sft().run_name == "tiny_sft-arith-500"


def test_the_base_itself_has_nothing_to_do_with_training(monkeypatch, tmp_path):
    before = model_config("tiny").identity_hash
    for number, setting in enumerate(("learning_rate: 1.0", "max_seq_length: 77")):
        other = tmp_path / str(number)
        other.mkdir()
        changed = COLLECTIONS.replace("sft: {learning_rate: 5.0e-3", f"sft: {{{setting}")
        assert changed != COLLECTIONS
        use(monkeypatch, other, changed)
        assert model_config("tiny").identity_hash == before, setting


def test_the_order_of_thresholds_does_not_count():
    a, b = (sft(perplexity_thresholds=t) for t in ((1.6, 2.0, 1.4), (2.0, 1.6, 1.4)))
    assert a == b
    assert a.perplexity.perplexity_thresholds == (2.0, 1.6, 1.4)
    assert labels(a) == ["ppl-2.0", "ppl-1.6", "ppl-1.4"]


def test_how_patience_is_written_does_not_count():
    assert sft(perplexity_patience=("2:.02",)) == sft(perplexity_patience=("2:0.020",))


def test_rules_are_thresholds_then_patience():
    config = sft(perplexity_thresholds=(1.6, 2.0), perplexity_patience=("2:0.02", "3:.1"))
    assert labels(config) == ["ppl-2.0", "ppl-1.6", "ppl-2@0.02", "ppl-3@0.1"]


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
@pytest.mark.parametrize(
    ("values", "of"),
    [
        ({"num_generations": 4}, ("grpo",)),
        ({"grpo_temperature": 0.5}, ("grpo",)),
        ({"max_completion_length": 32}, ("grpo",)),
        ({"grpo_beta": 0.5}, ("grpo",)),
        ({"kl_batch_size": 4}, ("kto",)),
        ({"sft_loss_weight": 0.5}, ("dpo",)),
        ({"beta": 0.5}, ("dpo", "kto")),
    ],
    ids=str,
)
def test_a_setting_of_one_method_changes_that_one_only(method, values, of):
    """Of the others it changes nothing, and is refused where it is given for one of them."""
    default = pt(method)
    changed = replace(default, training=replace(default.training, **values))
    assert (changed.hash != default.hash) == (method in of)
    if method in of:
        assert pt(method, **values).hash == changed.hash
    else:
        (name,) = values
        with pytest.raises(UserError, match=f"{name} is not used by {method}; it is for {of[0]}"):
            pt(method, **values)


def labels(config: SFTRunConfig) -> list[str]:
    return [rule.label for rule in config.rules]


def on_engine(**values):
    return sft(trainer="engine", **values)


def test_a_run_with_trl_has_no_setting_of_the_engine_in_its_hash():
    config = sft()
    assert config.artifact_form == "adapter" and config.trainer == "trl"
    assert set(config.hashed) == {"model", "dataset", "lora", "training", "perplexity"}
    assert sft(trainer="trl") == config
    without = {k: v for k, v in plain(config).items() if k != "engine"}
    assert restore(SFTRunConfig, without) == config, "as config.json of such a run has it"


def test_a_run_on_the_engine_is_another_one_and_leaves_whole_weights():
    config = on_engine()
    assert (config.artifact_form, config.identity("x", None).artifact) == ("full", "full")
    assert config.hash != sft().hash
    assert config.run_name == suffixed("tiny_sft-arith-500", config)
    assert set(config.hashed) == {"model", "dataset", "training", "perplexity", "engine"}
    assert not config.is_default_but_rules
    assert replace(config, lora=replace(config.lora, lora_r=3)).hash == config.hash


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens_per_gpu": 2048},
        {"parallel": "zero1"},
        {"sep_size": 2},
        {"gradient_checkpointing": True},
        {"use_compile": True},
        {"use_liger_kernels": True},
        {"save_steps": 7},
        {"optimizer": "adamw_torch"},
        {"osft_unfreeze_rank_ratio": 0.5},
    ],
    ids=str,
)
def test_how_the_engine_carries_it_out_does_not_count(values):
    assert on_engine(**values).hash == on_engine().hash


def test_all_weights_are_another_run_in_which_no_adapter_counts():
    config = sft(full=True)
    assert config.artifact_form == "full" and config.hash != sft().hash
    assert config.run_name == suffixed("tiny_sft-arith-500", config)
    other = replace(config, lora=replace(config.lora, lora_r=3, full_modules=("lm_head",)))
    assert other.hash == config.hash
    parent = parent_of(config, config.run_name)
    assert parent.lora is None
    over, of_all = pt(parent=parent), pt(parent=parent, full=True)
    assert not over.continues_adapter and over.artifact_form == "adapter"
    assert of_all.artifact_form == "full" and of_all.hash != over.hash


def test_all_weights_over_an_adapter_merge_it():
    parent = parent_of(sft(), sft().run_name)
    found = pt(parent=parent, full=True)
    assert not found.continues_adapter and found.artifact_form == "full"
    merged = replace(found, training=replace(found.training, merge_parent=True))
    assert merged.hash == found.hash != pt(parent=parent).hash


def test_four_bits_are_another_model_and_what_opens_it_is_not():
    assert sft(load_in_4bit=True).hash != sft().hash
    assert sft(load_in_4bit=True).model.identity_hash != sft().model.identity_hash
    for name in ("transformers", "unsloth"):
        assert sft(backend_train=name).hash == sft().hash
        assert pt(backend_train=name).run_name == pt().run_name


def test_auto_is_unsloth_where_it_is_there_and_can_do_the_run(monkeypatch):
    monkeypatch.setattr(provenance, "gpus", lambda: ["0"])
    monkeypatch.setattr(provenance, "version", lambda name: "1")
    answers = {"pass_at_k_targets": [0.5]}
    for run, name in (
        (sft(), "unsloth"),
        (sft(**answers, pass_at_k_backend="vllm"), "unsloth"),
        (sft(**answers, pass_at_k_backend="hf"), "transformers"),
        (sft(backend_train="transformers"), "transformers"),
        (pt(), "unsloth"),
        (pt("grpo"), "transformers"),
    ):
        assert backend.chosen(run) == name
    monkeypatch.setattr(provenance, "gpus", list)
    assert backend.chosen(sft()) == "transformers"


def test_what_the_engine_trains_does():
    others = [
        on_engine(osft=True),
        on_engine(osft=True, osft_unfreeze_rank_ratio=0.5),
        on_engine(learning_rate=1e-3),
        on_engine(perplexity_thresholds=(2.0,)),
        on_engine(perplexity_thresholds=(2.0,), eval_steps=3),
    ]
    assert len({config.hash for config in [on_engine(), *others]}) == len(others) + 1


def test_a_model_may_say_that_the_engine_trains_it(monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    use(monkeypatch, other, COLLECTIONS.replace("sft: {", "sft: {trainer: engine, "))
    assert sft().run_name == "tiny_sft-arith-500"
    assert sft().artifact_form == "full" and sft().is_default_but_rules
    assert sft(trainer="trl").run_name == suffixed("tiny_sft-arith-500", sft(trainer="trl"))
    assert fork().named(5) == "tiny_sweetspot-ppl-2.0_dpo-arith-5"


def test_an_adapter_that_is_continued_cannot_be_another_one():
    assert fork(lora_r=fork().lora.lora_r).hash == fork().hash
    with pytest.raises(UserError, match=r"lora_r is 3, and the run continues .* --merge_parent"):
        fork(lora_r=3)
    assert fork(lora_r=3, merge_parent=True).lora.lora_r == 3


def test_a_fork_of_a_whole_model_has_a_new_adapter_and_another_hash():
    of = on_engine(perplexity_thresholds=(2.0,))
    parent = parent_of(of, of.run_name)
    assert parent.lora is None
    whole, adapter = fork(of=of), fork()
    assert whole.hash != adapter.hash
    assert adapter.continues_adapter and not whole.continues_adapter
    assert "lora" in whole.hashed and "lora" not in adapter.hashed
    assert fork(of=of, lora_r=4).lora.lora_r == 4
    assert fork(of=of, lora_r=4).hash != whole.hash
    assert [fork(m, of=of).artifact_form for m in ("dpo", "kto", "grpo")] == [
        "adapter",
        "adapter",
        "full",
    ]
    assert whole.named(520) == suffixed("tiny_sweetspot-ppl-2.0_dpo-arith-520", whole)


def test_an_identity_carries_the_settings():
    config = sft()
    identity = config.identity(config.run_name, None)
    assert (identity.kind, identity.hash, identity.artifact) == ("sft", config.hash, "adapter")
    assert identity.settings["compute"]["micro_batch_size"] == 32
    assert "compute" not in identity.hashed
