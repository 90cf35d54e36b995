"""The input of the budget experiment: flags, environment variables, or answers to questions.

A flag overrides its variable. If neither names any choice, questions are asked; if some are
missing, one error lists them all. Nothing is started here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tuning import config as site
from tuning.autotune.config import autotune_given
from tuning.experiments.budget import Budget
from tuning.experiments.choices import settings_given
from tuning.experiments.split import exact_cost, exact_ratio
from tuning.flags import truth
from tuning.methods import METHODS
from tuning.phases.options import held_out_given
from tuning.runs.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One thing to choose: a flag, and the variable of the same name in capitals."""

    flag: str
    help: str
    several: bool = True
    by_variable: bool = True

    @property
    def variable(self) -> str:
        return self.flag.upper()


_NEEDED = (
    _Choice(flag="task", help="math or instruction (gsm8k, ifeval)", several=False),
    _Choice(flag="dataset", help="a dataset of the task", several=False),
    _Choice(flag="sft_ratio", help="shares of the budget that SFT takes, from 0 to 1"),
    _Choice(flag="base_model", help="collections.yaml keys, hub ids or local folders"),
    _Choice(flag="pft_method", help=", ".join(METHODS)),
)
DEFAULT_SIZE = 1000
_SIZES = _Choice(
    flag="train_sizes",
    help=f"budgets in examples, SFT and preference together (default: {DEFAULT_SIZE})",
)
_COSTS = (
    _Choice(
        flag="sft_cost",
        help="what the annotation of an SFT example costs; train_sizes are then budgets in that "
        "unit, and each ratio is the share of the cost that SFT takes (default: 1)",
        several=False,
        by_variable=False,
    ),
    _Choice(
        flag="pft_cost",
        help="what the annotation of a preference example costs (default: 1)",
        several=False,
        by_variable=False,
    ),
)
_ASK_SIZES = f"Training examples, SFT and preference together (default {DEFAULT_SIZE}): "
_SEED = _Choice(
    flag="seed",
    help="seeds of SFT and preference tuning (default: the model's)",
    by_variable=False,
)
_SEEDS = _Choice(
    flag="seeds",
    help="how many seeds, from the model's default upwards; scores then have intervals over "
    "prompts and seeds",
    several=False,
    by_variable=False,
)
_PHASES = (
    _Choice(flag="do_training", help="train", several=False),
    _Choice(flag="do_inference", help="sample answers of every model", several=False),
    _Choice(flag="do_evaluation", help="score them", several=False),
    _Choice(flag="do_sft_first", help="also train the SFT runs to start from", several=False),
)
_AUTOTUNE = _Choice(
    flag="autotune",
    help="before each training, find its fastest safe micro-batch and the like",
    several=False,
)
_BEFORE = _Choice(
    flag="evaluate_before",
    help="measure before and after each training: score, perplexity, implicit reward",
    several=False,
)
_BUDGET = (*_NEEDED, _SIZES, *_COSTS, _SEED, _SEEDS)
_FLAGS = (*_BUDGET, *_PHASES, _AUTOTUNE, _BEFORE)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a budget experiment; without defaults, so that unset ones show as None."""
    group = parser.add_argument_group("the budget; several values make a grid")
    for choice in _BUDGET:
        group.add_argument(
            f"--{choice.flag}",
            nargs="+" if choice.several else None,
            help=choice.help,
            metavar=choice.variable,
        )
    group = parser.add_argument_group("what to do, y or n (default: n)")
    for choice in (*_PHASES, _AUTOTUNE, _BEFORE):
        group.add_argument(
            f"--{choice.flag}", nargs="?", const="y", metavar="y|n", help=choice.help
        )


def given(args: argparse.Namespace, environ: Mapping[str, str]) -> bool:
    """Whether any choice is given, by a flag or a variable."""
    by_flag = any(getattr(args, choice.flag, None) is not None for choice in _FLAGS)
    return by_flag or any(environ.get(choice.variable, "").strip() for choice in _NEEDED)


def wanted(args: argparse.Namespace, environ: Mapping[str, str]) -> Budget:
    """The budget from flags and variables; one UserError lists everything that is missing."""
    inputs = _Inputs(args, environ)
    phases = inputs.phases()
    values = {choice.flag: inputs.words(choice) for choice in _NEEDED}
    ratios = inputs.ratios()
    sizes, seeds = inputs.numbers(_SIZES, 1), inputs.numbers(_SEED, 0)
    missing = [choice for choice in _NEEDED if not values[choice.flag]]
    if ratios and all(ratio == 1 for ratio in ratios):
        missing = [choice for choice in missing if choice.flag != "pft_method"]
    if missing:
        names = ", ".join(f"--{choice.flag} ({choice.variable})" for choice in missing)
        raise UserError(f"missing: {names}; give each as a flag or as the variable.")
    return Budget(
        task=values["task"][0],
        dataset=values["dataset"][0],
        sft_ratios=ratios,
        base_models=values["base_model"],
        pft_methods=values["pft_method"],
        train_sizes=sizes or (DEFAULT_SIZE,),
        **inputs.costs(),
        seeds=seeds,
        n_seeds=next(iter(inputs.numbers(_SEEDS, 1)), None),
        experiment=getattr(args, "experiment", None),
        **phases,
        **settings_given(args),
    )


class _Inputs:
    """Values of flags and variables; errors name the one at fault."""

    def __init__(self, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
        self.args = args
        self.environ = environ

    def words(self, choice: _Choice) -> tuple[str, ...]:
        """The values of a choice, split at spaces and commas unless it takes only one."""
        value = getattr(self.args, choice.flag, None)
        if value is None:
            value = self.environ.get(choice.variable, "") if choice.by_variable else ""
        if not choice.several:
            return (value.strip(),) if value.strip() else ()
        text = " ".join(value) if isinstance(value, list) else value
        return tuple(text.replace(",", " ").split())

    def name(self, choice: _Choice) -> str:
        """The flag or the variable that gave the value, for messages."""
        by_flag = getattr(self.args, choice.flag, None) is not None
        return f"--{choice.flag}" if by_flag else choice.variable

    def ratios(self) -> tuple[Decimal, ...]:
        """The SFT ratios, from 0 to 1."""
        choice = next(choice for choice in _NEEDED if choice.flag == "sft_ratio")
        return tuple(exact_ratio(word, self.name(choice)) for word in self.words(choice))

    def costs(self) -> dict[str, Any]:
        """The costs of examples that were given, as fields of Budget."""
        given = {choice: self.words(choice) for choice in _COSTS}
        return {c.flag: exact_cost(words[0], self.name(c)) for c, words in given.items() if words}

    def numbers(self, choice: _Choice, least: int) -> tuple[int, ...]:
        """Whole numbers of at least `least`."""
        return tuple(self._number(choice, word, least) for word in self.words(choice))

    def _number(self, choice: _Choice, word: str, least: int) -> int:
        if not (word.isascii() and word.isdigit()) or int(word) < least:
            raise UserError(
                f"{self.name(choice)} is '{word}'; it must be a whole number of at least {least}."
            )
        return int(word)

    def phases(self) -> dict[str, Any]:
        """The phases to run, as fields of Budget."""
        search = autotune_given(self.args, self._truth(_AUTOTUNE))
        more = {"autotune": search, "held_out": held_out_given(self.args, self._truth(_BEFORE))}
        return {choice.flag: self._truth(choice) for choice in _PHASES} | more

    def _truth(self, choice: _Choice) -> bool:
        word = next(iter(self.words(choice)), "n")
        try:
            return truth(word)
        except ValueError:
            raise UserError(
                f"{self.name(choice)} is '{word}'; it must be y or n (yes, no, true, false, on, "
                "off, 1, 0)."
            ) from None


def to_terminal(text: str) -> None:
    """Print a prompt to stderr, flushed and without a newline."""
    print(text, end="", file=sys.stderr, flush=True)


def ask(
    read: Callable[[], str] = input,
    say: Callable[[str], None] = to_terminal,
    environ: Mapping[str, str] | None = None,
    *,
    at_terminal: bool = False,
) -> Budget:
    """The budget from answers to questions.

    `read` returns one line and raises EOFError at the end of the input, as `input` does; `say`
    prints a text as it is. TRAIN_SIZES comes from the environment; a person at a terminal is asked
    for it where it is not set. UserError if the input ends.
    """
    inputs = _Inputs(argparse.Namespace(), os.environ if environ is None else environ)
    given_phases = inputs.phases()
    sizes = inputs.numbers(_SIZES, 1)
    collections, door = site.collections(), _Questions(read, say)
    task = door.choose("Select task:", collections.tasks, collections.aliases)
    dataset = door.choose("Select dataset:", collections.tasks[task])
    ratio = door.choose("Select sft ratio:", [str(ratio) for ratio in collections.sft_ratio])
    model = door.choose("Select base model:", collections.models)
    method = door.choose("Select pft method:", collections.pft_methods)
    if at_terminal and not sizes:
        sizes = door.numbers(_ASK_SIZES)
    phases: dict[str, Any] = {
        f"do_{phase}": door.yes(f"Do you want to perform {phase}? (y/N): ")
        for phase in ("training", "inference", "evaluation")
    }
    if phases["do_training"]:
        phases["do_sft_first"] = door.yes("Do you want to run SFT first before DPO? (y/N): ")
    return Budget(
        task=task,
        dataset=dataset,
        sft_ratios=(exact_ratio(ratio),),
        base_models=(model,),
        pft_methods=(method,),
        train_sizes=sizes or (DEFAULT_SIZE,),
        autotune=given_phases["autotune"],
        held_out=given_phases["held_out"],
        **phases,
    )


def confirmed(
    question: str, read: Callable[[], str] = input, say: Callable[[str], None] = to_terminal
) -> bool:
    """Whether a question is answered with yes."""
    return _Questions(read, say).yes(question)


@dataclass(frozen=True)
class _Questions:
    """Repeats each question until the answer is valid."""

    read: Callable[[], str]
    say: Callable[[str], None]

    def choose(self, question: str, options: Any, aliases: Mapping[str, str] | None = None) -> str:
        """One of `options`, by its number in the menu or by its name."""
        names = list(options)
        self.say("".join(f"{number}) {name}\n" for number, name in enumerate(names, 1)))
        while True:
            word = self._answer(f"{question} ", question)
            option = _option(word, names, aliases or {})
            if option is not None:
                return option
            self.say(
                f"'{word}' is not on the list; give a number from 1 to {len(names)} or a name: "
                f"{', '.join(names)}.{nearest(word, names)}\n"
            )

    def yes(self, question: str) -> bool:
        """Whether the answer is yes; an empty answer is no."""
        while True:
            word = self._answer(question, question.strip()).lower()
            if word in ("", "n", "no"):
                return False
            if word in ("y", "yes"):
                return True
            self.say(f"'{word}' is neither; answer y or n.\n")

    def numbers(self, question: str) -> tuple[int, ...]:
        """One whole number or several; an empty answer is none."""
        while True:
            words = self._answer(question, question.strip()).replace(",", " ").split()
            if all(re.fullmatch(r"[0-9]{1,12}", word) and int(word) for word in words):
                return tuple(map(int, words))
            self.say(f"'{' '.join(words)}' is not: give a whole number above 0, or several.\n")

    def _answer(self, prompt: str, question: str) -> str:
        self.say(prompt)
        try:
            return self.read().strip()
        except UnicodeDecodeError:
            return "\ufffd"
        except EOFError:
            self.say("\n")
            raise UserError(
                f"the input ended at the question “{question}”; answer it, or give flags or "
                "variables: see --help."
            ) from None


def _option(word: str, names: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The option with this name, number, alias or numeric value; None if there is none."""
    if word in names:
        return word
    if word.isascii() and word.isdigit() and 1 <= int(word) <= len(names):
        return names[int(word) - 1]
    if word in aliases:
        return aliases[word]
    try:
        return next((name for name in names if Decimal(name) == Decimal(word)), None)
    except ArithmeticError:
        return None
