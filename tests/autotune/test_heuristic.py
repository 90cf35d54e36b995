"""Each decision rule of the binary search."""

from __future__ import annotations

import pytest

from tests.autotune.small import SCORER, SPACE, failed, ran, searched
from tuning.autotune.heuristic import Heuristic
from tuning.autotune.space import Candidate, Space

pytestmark = pytest.mark.unit


def at(size: int, checkpointing: bool = True) -> Candidate:
    return Candidate(micro_batch=size, gradient_checkpointing=checkpointing)


def after(*observations, space: Space = SPACE, target: float = 0.5) -> Candidate | None:
    strategy = Heuristic(space, SCORER, target)
    for observation in observations:
        strategy.tell(observation)
    return strategy.ask()


def test_it_starts_with_what_takes_the_least_memory():
    assert after() == at(1)
    everything = Space(
        target=32, processes=4, nodes=2, method="pretrain", compiles=True, sep_sizes=(1, 2),
        sharding=("none", "full_shard", "hybrid_shard"),
    )  # fmt: skip
    assert after(space=everything) == Candidate(micro_batch=1, sharding="full_shard")


def test_room_and_too_slow_doubles():
    assert after(ran(at(2), memory=0.69, mfu=0.1)) == at(4)


def test_doubling_takes_what_divides():
    assert after(ran(at(2), memory=0.3, mfu=0.1), space=Space(target=18)) == at(3)
    assert after(ran(at(1), memory=0.3, mfu=0.1), space=Space(target=15)) == at(3)


def test_tight_halves():
    assert after(ran(at(8, False), memory=0.86, mfu=0.3)) == at(4, False)


def test_out_of_memory_halves():
    assert after(failed(at(8), "oom")) == at(4)


def test_tight_at_the_smallest_enables_checkpointing():
    assert after(ran(at(1, False), memory=0.95, mfu=0.3)) == at(1)


def test_far_from_the_target_disables_checkpointing():
    assert after(ran(at(4), memory=0.75, mfu=0.39)) == at(4, False)


def test_nothing_to_gain_converges():
    assert after(ran(at(4), memory=0.75, mfu=0.41)) is None
    assert after(ran(at(4, False), memory=0.75, mfu=0.1)) is None
    assert after(ran(at(4), memory=0.2, mfu=0.6)) is None


def test_what_is_known_leads_on_to_the_rules_there():
    """8 is too much, and 4 is known: its next rule disables checkpointing."""
    assert after(ran(at(4), memory=0.6, mfu=0.3), failed(at(8), "oom")) == at(4, False)


@pytest.mark.parametrize("outcome", ["crash", "hang", "garbage"])
def test_a_failure_gives_way_to_the_next_rule(outcome):
    assert after(ran(at(4), memory=0.6, mfu=0.3), failed(at(8), outcome)) == at(4, False)


@pytest.mark.parametrize("outcome", ["crash", "hang", "garbage"])
def test_the_first_one_fails(outcome):
    assert after(failed(at(1), outcome)) == at(1, False)


def test_an_unknown_peak_counts_as_below_the_target():
    assert after(ran(at(2), memory=0.5, mfu=None)) == at(4)
    assert after(ran(at(2), memory=0.75, mfu=None)) == at(2, False)


def test_a_whole_search():
    """Checkpointing takes a fifth of the activations' memory and four thirds of the time."""

    def trial(c: Candidate):
        memory = 0.2 + 0.1 * c.micro_batch * (0.2 if c.gradient_checkpointing else 1)
        if memory > 1:
            return failed(c, "oom")
        mfu = 0.5 * c.micro_batch / (c.micro_batch + 2) / (4 / 3 if c.gradient_checkpointing else 1)
        return ran(c, memory=memory, mfu=mfu, speed=1e4 * mfu)

    result = searched("heuristic", trial)
    assert [o.candidate for o in result.observations] == [
        at(1), at(2), at(4), at(8), at(16), at(32), at(32, False), at(16, False), at(8, False),
        at(4, False),
    ]  # fmt: skip
    assert result.winner == at(32)
    assert result.ended == "converged"
