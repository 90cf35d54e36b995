"""What a run of the engine is called, what makes two the same, and what is refused before anything
is built.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_site import use
from tuning.engine.config import ComputeConfig
from tuning.engine.run_config import beside, experiment_config, preset, pretrain_config
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit
MOCK = {"use_mock_data": True, "max_steps": 3}


def gpt(**values):
    return experiment_config("gpt", MOCK | values)


@pytest.fixture(autouse=True)
def site(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path)


def test_a_model_of_collections_has_its_own_name():
    assert pretrain_config("tiny").run_name == "tiny"
    other = pretrain_config("tiny", {"max_lr": 1e-3})
    assert other.run_name == f"tiny-{other.hash[:8]}"


def test_data_that_are_named_take_the_place_of_the_corpus():
    found = pretrain_config("tiny", {"use_mock_data": True}).data
    assert found.use_mock_data and found.corpus is None
    assert pretrain_config("tiny", {"use_mock_data": False}).data.corpus == "arith"


def test_the_defaults_are_those_of_the_documented_gpt():
    config = gpt()
    shape, t = config.shape, config.training
    assert (shape.num_layer, shape.num_attention_heads, shape.hidden_size) == (32, 128, 1024)
    batch = (t.total_batch_size, config.compute.micro_batch_size, config.seq_len)
    assert batch == (524288, 8, 4096)
    assert (t.max_lr, t.last_lr, t.warmup_steps, t.weight_decay) == (4e-3, 3e-5, 1000, 0.1)
    assert config.output.save_every_steps == 5000 and config.compute.sep_size == 1


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 2}, {"micro_batch_size": 2}, {"parallel": "ddp"}, {"sep_size": 2},
        {"use_compile": True}, {"save_every_steps": 7}, {"gradient_checkpointing": True},
        {"focal_gamma": 5.0}, {"osft_unfreeze_rank_ratio": 0.5}, {"training_mode": "step"},
        {"min_lr": 3e-5}, {"seq_len": 4096},
    ],
    ids=str,
)  # fmt: skip
def test_how_it_is_carried_out_is_not_what_it_is(values):
    assert gpt(**values).hash == gpt().hash


@pytest.mark.parametrize(
    "values",
    [
        {"max_lr": 1e-3}, {"total_batch_size": 4096}, {"max_steps": 4}, {"seed": 1},
        {"loss": "focal"}, {"num_layer": 2}, {"seq_len": 2048}, {"mock_data_num_samples": 9},
        {"max_tokens_per_gpu": 8192}, {"train_dtype": "bfloat16"}, {"use_moe": True},
        {"save_dtype": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_the_weights_changes_the_hash(values):
    assert gpt(**values).hash != gpt().hash


def test_among_experts_the_micro_batch_counts():
    assert gpt(use_moe=True).hash != gpt(use_moe=True, batch_size=2).hash
    packed = {"use_moe": True, "max_tokens_per_gpu": 4096}
    assert gpt(**packed).hash != gpt(**packed | {"max_tokens_per_gpu": 8192}).hash
    assert gpt(use_moe=True).hash != gpt(use_moe=True, router_aux_loss_coef=0.1).hash
    assert gpt().hash == gpt(router_aux_loss_coef=0.1).hash


def test_the_hash_of_the_embedded_model_stays_what_it_is():
    """It seeds the sampling of every run that starts from it."""
    config = experiment_config("tiny", preset("tiny"))
    assert config.hashed["training"]["packed"] is False
    assert set(config.hashed) == {"chat_template", "data_version", "base_hash", "shape", "data",
                                  "training"}  # fmt: skip
    assert "micro_batch_size" not in str(config.hashed)
    assert config.hash.startswith("9ec874a49b5e")


def test_batch_size_has_one_meaning_in_a_config():
    """The flag has two: sequences of a forward pass, and samples of a packed step."""
    fixed, packed = gpt(batch_size=2), gpt(batch_size=32, max_tokens_per_gpu=8192)
    assert (fixed.training.batch_size, fixed.compute.micro_batch_size) == (None, 2)
    assert fixed == gpt(micro_batch_size=2)
    assert fixed.global_batch == 524288 // 4096
    assert (packed.training.batch_size, packed.compute.micro_batch_size) == (32, None)
    assert packed.global_batch == 32
    assert gpt(max_tokens_per_gpu=8192).global_batch == 8


def described(*words: str):
    from tuning import run_pretrain

    return run_pretrain.config_of(run_pretrain.parser().parse_args([*words]))


def test_the_flags_that_are_documented_elsewhere_mean_what_they_meant(tmp_path: Path):
    """Those of Tinytron's and mini_trainer's commands, with dashes and with underscores."""
    words = (
        "--exp_name debug_test --use_mock_data --mock_data_num_samples 1280 --total_batch_size "
        "524288 --batch_size 8 --seq_len 4096 --sep_size 1 --max_epochs 1 --debug --max_lr 4e-3 "
        "--min_lr 3e-5 --weight_decay 0.1 --grad_clip_value 1.0 --warmup_steps 1000 "
        "--save_every_steps 5000 --use_compile --use_profiler --steps_to_profile 15 20"
    )
    config = described(*words.split())
    assert (config.model, config.compute.micro_batch_size, config.global_batch) == (
        "debug_test", 8, 128
    )  # fmt: skip
    assert config.compute.use_compile and config.output.debug
    same = described("--use_mock_data", "--exp_name", "debug_test")
    assert config.hash == same.hash

    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    (tmp_path / "data.jsonl").write_text('{"input_ids": [1, 2, 3]}\n')
    words = (
        f"--output-dir {tmp_path}/run --data-path {tmp_path}/data.jsonl --model-name-or-path "
        f"{tmp_path}/base --batch-size 128 --max-tokens-per-gpu 128000 --learning-rate 5e-6 "
        "--use-liger-kernels --osft --osft-unfreeze-rank-ratio 0.25 --block-size 512"
    )
    config = described(*words.split())
    assert (config.global_batch, config.compute.max_tokens_per_gpu) == (128, 128000)
    assert (config.training.max_lr, config.seq_len, config.training.osft) == (5e-6, 512, True)
    assert config.compute.use_liger_kernels and config.compute.micro_batch_size is None


def test_batches_that_are_given_take_the_place_of_those_of_a_preset():
    base = preset("gpt-1b") | MOCK
    assert base["micro_batch_size"] == 4
    for given, micro in (({"batch_size": 2}, 2), ({"micro_batch_size": 2}, 2), ({}, 4)):
        config = experiment_config("x", beside(base, given))
        assert config.compute.micro_batch_size == micro
    packed = experiment_config("x", beside(base, {"max_tokens_per_gpu": 4096}))
    assert (packed.compute.micro_batch_size, packed.global_batch) == (None, 8)


def test_what_follows_from_other_settings_is_filled_in():
    t = gpt().training
    assert (t.training_mode, t.min_lr, t.seq_len, t.packed) == ("step", 3e-5, 4096, False)
    assert gpt(max_lr=1e-4).training.min_lr == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {}, {"batch_size": 2}, {"max_tokens_per_gpu": 512}, {"min_lr": 1e-4},
        {"max_tokens_per_gpu": 512, "batch_size": 5}, {"max_lr": 1e-5, "min_lr": 1e-7},
        {"max_lr": 1e-3}, {"block_size": 256}, {"block_size": 256, "seq_len": 128},
        {"use_mock_data": True, "max_tokens": 70, "training_mode": "token"},
        {"use_mock_data": True, "max_steps": 5, "max_tokens": 70}, {"use_mock_data": True},
        {"gradient_checkpointing": False, "loss": "tuning.engine.losses.focal"},
        {"loss": "focal", "focal_gamma": 0.1}, {"use_mock_data": True, "use_moe": True},
        {"steps_to_profile": (2, 3), "debug": True, "log_dir": "a b", "osft_target_patterns": ()},
    ],
    ids=str,
)  # fmt: skip
def test_the_command_of_a_config_makes_it_again(values):
    from tuning import run_pretrain
    from tuning.training.render import pretrain_words

    config = pretrain_config("tiny", values)
    script, *words = pretrain_words(config)
    assert script == "run_pretrain.py"
    assert run_pretrain.config_of(run_pretrain.parser().parse_args(words)) == config


def test_data_are_told_by_what_they_hold(tmp_path: Path):
    one, two = tmp_path / "one.jsonl", tmp_path / "elsewhere.jsonl"
    for path in (one, two):
        path.write_text('{"input_ids": [1, 2, 3]}\n')
    same = [experiment_config("x", {"data_path": str(path)}).hash for path in (one, two)]
    assert same[0] == same[1]
    two.write_text('{"input_ids": [1, 2, 4]}\n')
    assert experiment_config("x", {"data_path": str(two)}).hash != same[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_mock_data": False}, "nothing to train on; give one of"),
        ({"data_path": "x.jsonl"}, "there is no file 'x.jsonl'"),
        ({"seq_len": 8192}, "seq_len 8192 is above block_size 4096"),
        ({"total_batch_size": 5000}, "5000 is not a multiple of seq_len 4096; 4096 is the nearest"),
        ({"sep_size": 3}, "sep_size 3 does not divide seq_len 4096"),
        ({"sep_size": 256}, "sep_size 256 does not divide num_attention_heads 128"),
        ({"use_moe": True, "num_experts": 6, "num_experts_per_tok": 2, "sep_size": 4},
         "sep_size 4 does not divide num_experts 6"),
        ({"osft": True}, "give one with --model_name_or_path"),
        ({"osft_unfreeze_rank_ratio": 1.5}, "is 1.5; it must be between 0.0 and 1.0"),
        ({"training_mode": "infinite"}, "use --lr_scheduler constant"),
        ({"training_mode": "token"}, "--training_mode token needs --max_tokens"),
        ({"min_lr": 1.0}, "min_lr is 1.0; it must be between 0 and max_lr"),
        ({"save_best_val_loss": True}, "needs --validation_split"),
        ({"batch_size": 2, "micro_batch_size": 2}, "batch_size and micro_batch_size are the same"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"micro_batch_size": 4, "max_tokens_per_gpu": 64}, "micro_batch_size is for batches of a"),
        ({"loss": "focl"}, "Did you mean 'focal'?"),
        ({"loss": "nowhere:f"}, "there is no module 'nowhere'"),
        ({"steps_to_profile": (3,)}, "two step numbers"),
        ({"model_name_or_path": "nowhere"}, "nowhere"),
    ],
    ids=str,
)  # fmt: skip
def test_what_contradicts_itself_is_refused(values, words):
    with pytest.raises(UserError) as refused:
        gpt(**values)
    assert words in str(refused.value)


def test_names_that_are_no_folders():
    for name in ("", "a/b", ".hidden"):
        with pytest.raises(UserError, match="exp_name"):
            experiment_config(name, MOCK)


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("gpt-0.25b", 0.25, None), ("gpt-1b", 1.54, None), ("gpt-3b", 3.0, None),
     ("gpt-7b", 7.0, None), ("gpt-0.3b-a0.17b", 0.3, 0.17)],
)  # fmt: skip
def test_presets_have_the_size_that_they_say(name, billions, active):
    import torch

    from tuning.engine import model

    shape = experiment_config("x", preset(name) | MOCK).shape
    with torch.device("meta"):
        network = model.skeleton(
            model.architecture(shape, eos_token_id=0, pad_token_id=0), torch.float32
        )
    count = sum(p.numel() for p in network.parameters()) / 1e9
    assert count == pytest.approx(billions, rel=0.15)
    if active:
        experts = sum(p.numel() for n, p in network.named_parameters() if ".experts." in n) / 1e9
        idle = experts * (1 - shape.num_experts_per_tok / shape.num_experts)
        assert count - idle == pytest.approx(active, rel=0.1)


def test_unknown_preset():
    with pytest.raises(UserError, match=r"unknown preset 'gpt-2b'.*Did you mean"):
        preset("gpt-2b")


def test_hsdp_has_no_sequence_parallelism():
    with pytest.raises(UserError, match=r"sep_size is 2; it must be 1 with parallel hsdp"):
        ComputeConfig(parallel="hsdp", sep_size=2)
    assert ComputeConfig(parallel="hsdp").sep_size == 1
