"""Which settings make up a run's identity, and how one is added later."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace
from typing import Any

import pytest

from tests.run_configs import sft
from tests.small_site import use
from tuning.flags import plain, restore
from tuning.runs.errors import UserError
from tuning.settings import RunConfig, hashed_settings, identity_hash, require, setting
from tuning.training.config import TrainingArgumentsConfig

pytestmark = pytest.mark.unit


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    micro: int = setting(4, hashed=False)
    on: bool = False
    ratio: float = setting(0.5, hashed=lambda part, run: part.on)
    depth: int = setting(1, hashed=lambda part, run: run.name == "deep")


@dataclass(frozen=True, kw_only=True)
class Outer(RunConfig):
    kind = "outer"
    name: str = "x"
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(), Inner(rate=0.2))
    path: str = setting("/a", hashed=False)

    @property
    def run_name(self) -> str:
        return self.name


def test_unhashed_settings_stay_out_at_every_depth():
    assert hashed_settings(Outer()) == {
        "name": "x",
        "inner": {"rate": 0.1, "on": False},
        "several": [{"rate": 0.1, "on": False}, {"rate": 0.2, "on": False}],
    }
    free = Outer(path="/b", inner=Inner(micro=8), several=(Inner(micro=1), Inner(rate=0.2)))
    assert free.hash == Outer().hash
    assert free.hash == identity_hash("outer", hashed_settings(free))


@pytest.mark.parametrize(
    "change", [{"name": "y"}, {"inner": Inner(rate=0.2)}, {"several": (Inner(),)}], ids=str
)
def test_every_other_setting_changes_the_hash(change):
    assert replace(Outer(), **change).hash != Outer().hash


def test_a_condition_may_look_at_its_part_and_at_the_whole_run():
    assert "ratio" not in hashed_settings(Outer())["inner"]
    assert hashed_settings(Outer(inner=Inner(on=True)))["inner"]["ratio"] == 0.5
    assert "depth" in hashed_settings(Outer(name="deep"))["inner"]
    assert Outer(inner=Inner(ratio=0.7)).hash == Outer().hash
    assert Outer(inner=Inner(on=True, ratio=0.7)).hash != Outer(inner=Inner(on=True)).hash


def grown(default: Any, before: Any) -> type:
    """The inner part with one setting more."""
    field = ("extra", type(default), setting(default, before=before))
    return make_dataclass("Grown", [field], bases=(Inner,), frozen=True, kw_only=True)


def test_a_setting_that_is_added_changes_no_hash_that_there_was():
    old = Outer()
    new = Outer(inner=grown("off", "off")(), several=())
    assert replace(old, several=()).hash == new.hash
    assert replace(new, inner=grown("off", "off")(extra="on")).hash != new.hash


def test_its_default_may_change_later_without_meeting_older_runs():
    """`before` stays what older runs did, whatever is the default now."""
    part = grown("on", "off")
    old = Outer(several=())
    assert Outer(inner=part(), several=()).hash != old.hash
    assert Outer(inner=part(extra="off"), several=()).hash == old.hash


def test_a_real_run_keeps_its_hash_when_a_setting_is_added(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path)
    config = sft()
    field = ("label_smoothing", float, setting(0.0, before=0.0))
    more = make_dataclass(
        "More", [field], bases=(TrainingArgumentsConfig,), frozen=True, kw_only=True
    )
    values = {name: getattr(config.training, name) for name in config.training.__dataclass_fields__}
    assert replace(config, training=more(**values)).hash == config.hash
    assert replace(config, training=more(**values, label_smoothing=0.1)).hash != config.hash


def test_what_is_restored_from_before_a_setting_existed_keeps_its_hash():
    part = grown("on", "off")
    old = restore(part, plain(Inner()))
    assert old.extra == "off"
    assert Outer(inner=old, several=()).hash == Outer(several=()).hash


def test_a_part_of_which_nothing_counts_is_left_out():
    @dataclass(frozen=True, kw_only=True)
    class Free:
        micro: int = setting(4, hashed=False)

    @dataclass(frozen=True, kw_only=True)
    class Run:
        name: str = "x"
        free: Free = Free()

    assert hashed_settings(Run()) == {"name": "x"}


def test_a_run_has_the_plain_name_where_it_counts_as_the_default():
    assert Outer(path="/b").suffixed("x", Outer()) == "x"
    other = Outer(name="y")
    assert other.suffixed("x", Outer()) == f"x-{other.hash[:8]}"


def test_a_requirement_names_the_setting_its_value_and_what_is_allowed():
    require(Inner(), "rate", True, "above zero")
    with pytest.raises(UserError, match=r"rate is 0\.1; it must be above one\."):
        require(Inner(), "rate", False, "above one")
    with pytest.raises(UserError, match="several is empty; it must be one or more"):
        require(Outer(several=()), "several", False, "one or more")
