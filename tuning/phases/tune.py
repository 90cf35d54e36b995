"""The tuning phase of a stage: before a new run trains, choose how it is computed (autotune/), and
use that choice on every resume, whether it is asked for again or not.

A run of one process is tuned in its own stage process, by trials that are processes of their own. A
run of several is tuned before torchrun starts them, by one process (`tune_only`) that
launchers/processes.py starts with the number of them in TUNING_TUNES_FOR.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.phases.options import Options
from tuning.phases.train import drop_evaluations
from tuning.runs import interrupt, manifest, ranks
from tuning.runs.log import logger
from tuning.runs.rundir import Identity, RunDirectory, claim, take

if TYPE_CHECKING:
    from tuning.autotune.choice import Choice, Found

TUNES_FOR = "TUNING_TUNES_FOR"
"""How many processes will train the run that this one is to tune, and then end."""
PHASE = "tune"


def tunes_only() -> int | None:
    """The number of processes to tune for, if this process does nothing else."""
    return int(os.environ.get(TUNES_FOR) or 0) or None


@contextlib.contextmanager
def tuned(
    serves: str, run: Any, directory: RunDirectory, options: Options, start: Any = None
) -> Iterator[Any]:
    """The run of a claimed directory with the choice for it applied, to be trained in the block:
    the choice that was written there before, else, if it is asked for and nothing is trained yet,
    one that is made now. One with which memory runs out before the first checkpoint is dropped.

    Args:
        serves: sft, pft or pretrain.
        run: The config of the run.
        directory: Its directory, claimed.
        options: Whether, and how, to tune.
        start: Where a preference run starts.
    """
    from tuning.autotune.phase import chosen_in, reject
    from tuning.runs.memory import is_out_of_memory

    choice = chosen_in(directory)
    if choice is None and options.autotune is not None and _is_new(directory):
        choice = _chosen_now(serves, run, directory, options, start)
    if choice is not None and choice.processes != ranks.world_size():
        logger.warning(
            f"tuned for {choice.processes} processes, and {ranks.world_size()} train: training "
            "with the run's settings"
        )
        choice = None
    try:
        yield run if choice is None else choice.applied(run)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        rejected = choice is not None and choice.candidate is not None and is_out_of_memory(why)
        if rejected and _is_new(directory) and ranks.is_first():
            reject(directory, why)
            logger.warning("memory ran out with what was chosen; the next start chooses again")
        raise


def _chosen_now(
    serves: str, run: Any, directory: RunDirectory, options: Options, start: Any
) -> Choice | None:
    if ranks.world_size() > 1:
        logger.warning(
            "not tuned: several processes are tuned for before they start; on one node, start "
            "them with python -m tuning.launchers.processes. Training with the run's settings"
        )
        return None
    return _choose(serves, run, directory, options, start).choice


def tune_only(
    serves: str,
    run: Any,
    identity: Identity,
    options: Options,
    processes: int,
    start: Any = None,
) -> None:
    """Tune a run that several processes will train, and leave the choice in its directory; with
    `force` it is emptied here, and the training must not do so again.
    """
    from tuning.autotune.phase import chosen_in

    named, root = options.output_dir, site.models_dir()
    if named is not None:
        take(named, identity, force=options.force)
        root = named.parent
    with claim(
        root,
        identity,
        exact=named is not None,
        wait=options.wait,
        force=options.force,
        check=interrupt.check,
    ) as directory:
        if options.force and named is None:
            drop_evaluations(directory)
        if directory.done("train") or chosen_in(directory) or not _is_new(directory):
            return
        _choose(serves, run, directory, options, start, processes)


def _is_new(directory: RunDirectory) -> bool:
    """Whether nothing is trained yet; what has begun goes on as it began."""
    return manifest.newest_whole(directory.path) is None


def _choose(
    serves: str,
    run: Any,
    directory: RunDirectory,
    options: Options,
    start: Any,
    processes: int = 1,
) -> Found:
    """Choose, and write the choice into the run directory."""
    from tuning.autotune import phase
    from tuning.autotune.config import AutotuneRunConfig

    assert options.autotune is not None
    config = AutotuneRunConfig.of(
        serves, run, options.autotune, processes=processes, **started(start)
    )
    directory.progress(PHASE, 0, options.autotune.max_iterations, "", final=True)

    def tell(at: int, of: int, note: str) -> None:
        directory.progress(PHASE, at, of, note, final=True)

    found = phase.choose(config, tell)
    phase.record(directory, found)
    show(found)
    return found


def show(found: Found) -> None:
    """Say what was chosen, and on which trials that rests."""
    from tuning.autotune.choice import table, winner_of

    choice, winner = found.choice, winner_of(found.choice)
    if found.observations and choice.source != "cache":
        logger.info(table(found))
    if winner is None:
        logger.warning(f"not tuned, training with the run's own settings: {choice.why}")
        return
    error = f"; predictions: {choice.prediction_error}" if choice.prediction_error else ""
    logger.info(f"tuned ({choice.source}): {winner}; {choice.trials} trials{error}")


def started(start: Any) -> dict[str, Any]:
    """Where a preference run starts, as a search is told of it."""
    if start is None:
        return {}
    return {
        "train_size": start.train_size,
        "parent": str(Path(start.parent.path)) if start.parent else None,
        "checkpoint": str(start.checkpoint) if start.checkpoint else None,
    }
