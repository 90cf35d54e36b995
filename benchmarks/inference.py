"""Tokens a second of sampled answers: vLLM, with all prompts at once; transformers in batches; and
one prompt at a time.

    python benchmarks/inference.py
    python benchmarks/inference.py --model SmolLM2-135M-Instruct --dtype bfloat16 --prompts 64

Without --model, a model of 27 million parameters with random weights over a vocabulary of 320
pieces answers: a third of its answers end by themselves, the others are cut. All get the same
prompts, in the chat form of the model, and the same settings; every engine has answered one prompt
before its time begins. Counted are the tokens of the answers. Where vLLM is not installed its row
says so: `make test-backends` makes an environment, .venv-backends, whose python has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tuning.config import CHAT_TEMPLATES
from tuning.data import arith
from tuning.evaluation.config import PassAtKConfig
from tuning.inference.generator import Generator, opened, token_ids
from tuning.runs.errors import UserError
from tuning.weights.artifact import Artifact

AIM = 3.0
"""Times the tokens a second of one prompt at a time."""
SHAPE = {
    "block_size": 1024,
    "vocab_size": 320,
    "num_layer": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 512,
    "intermediate_size": 1536,
}


def random_model(folder: Path) -> Path:
    """A model of SHAPE with random weights, and a tokenizer of as many pieces."""
    from tuning.engine.config import ModelConfig
    from tuning.engine.model import build
    from tuning.engine.tokenizer import train_tokenizer
    from tuning.weights.loading import save

    template = (CHAT_TEMPLATES / "tiny.jinja").read_text()
    documents = islice(arith.pretraining_documents(0), 200)
    tokenizer = train_tokenizer(documents, SHAPE["vocab_size"], template)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    save(build(ModelConfig(**SHAPE), seed=0, **ends), tokenizer, folder)
    return folder


def counting(generator: Any) -> list[int]:
    """Let a generator's tokenizer note the tokens of each answer that it turns into text."""
    counts: list[int] = []
    decode, ends = generator.tokenizer.decode, generator.ends

    def noted(token_ids: Any, **more: Any) -> Any:
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        for row in rows if rows and isinstance(rows[0], list) else [rows]:
            counts.append(next((n for n, token in enumerate(row) if token in ends), len(row)))
        return decode(token_ids, **more)

    generator.tokenizer.decode = noted
    return counts


def measured(
    generator: Generator, prompts: Sequence[Any], sampling: PassAtKConfig
) -> tuple[int, float]:
    """Tokens of all answers, and the seconds they took."""
    ids = token_ids(generator.tokenizer, prompts)  # type: ignore[attr-defined]
    longest = max(range(len(ids)), key=lambda n: len(ids[n]))
    list(generator.answers([prompts[longest]], sampling, "warm-up"))
    counts = counting(generator)
    begun = time.perf_counter()
    found = [answer for some in generator.answers(prompts, sampling, "measured") for answer in some]
    seconds = time.perf_counter() - begun
    assert len(found) == len(prompts)
    return sum(counts), seconds


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="a model folder (default: random weights)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table."""
    args = parsed(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or str(random_model(Path(temporary) / "model"))
        artifact = Artifact(model="benchmark", base=folder, tokenizer=folder, dtype=args.dtype)
        prompts = [row["prompt"] for row in arith.pools()["test"][: args.prompts]]
        one = PassAtKConfig(
            n_samples=1, k_values=(1,), max_new_tokens=args.max_new_tokens, backend="hf"
        )
        rows = {
            "transformers, one prompt at a time": replace(one, batch_size=1),
            "transformers, batches of 16": replace(one, batch_size=16),
            "vLLM, all prompts at once": replace(one, backend="vllm"),
        }
        print(f"{args.prompts} prompts, one answer each, {args.dtype}")
        print(f"{'':36}{'tokens':>8}{'s':>8}{'tokens/s':>10}{'times':>7}")
        base = None
        for name, sampling in rows.items():
            try:
                with opened(sampling.backend, artifact) as generator:
                    tokens, seconds = measured(generator, prompts, sampling)
            except UserError as error:
                print(f"{name:36}{error}")
                continue
            base = base or tokens / seconds
            speed = tokens / seconds
            print(f"{name:36}{tokens:8}{seconds:8.1f}{speed:10.0f}{speed / base:7.2f}", flush=True)
    print(f"aim: the fastest at least {AIM:g} times one prompt at a time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
