"""How vLLM is started: the variables and settings of a machine, and what to do where it refuses."""

from __future__ import annotations

import os
from typing import Any

from tuning import config as site
from tuning.runs.errors import StageFailed, cut

SHARE = 0.85
"""Of a GPU's memory, unless another is given: a training in this process may have left some."""
CPU_CACHE = 2 << 30
"""Bytes of the cache of keys and values on a CPU."""
STEP_TOKENS = 4096
"""That a step may read on a CPU."""
STARTS = 4
"""That are tried where other processes give memory of the GPU back meanwhile."""
DISTURBED = "memory profiling"
"""In the message of an engine which that has kept from starting: it measures how much is free."""
ADVICE = (
    ("kv cache", "give a larger --gpu_memory_utilization, or a smaller --max_new_tokens"),
    (DISTURBED, "start it again: another process gave memory of the GPU back meanwhile"),
    ("memory", "give another --gpu_memory_utilization, or end what else uses that memory"),
    ("world size", "give a smaller --tensor_parallel_size, or the job more GPUs"),
    ("tensor parallel", "give another --tensor_parallel_size"),
    ("attention heads", "give another --tensor_parallel_size"),
    ("lora", "give --merge_adapter true"),
    ("compute capability", "give --dtype float32"),
)
"""What to do about a refusal in which these words are."""


def environment(*, cuda: bool) -> None:
    """Variables that vLLM reads when it is imported; those that are set already stay."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(site.home() / "cache" / "vllm"),
    }
    if cuda:
        # Workers cannot be forked from a process that has asked for its GPUs.
        wanted["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # FlashInfer's sampler takes no seeds, which prompts have here, and compiles when it starts.
        wanted["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    else:
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def memory(share: float | None, *, cuda: bool) -> dict[str, Any]:
    """How much memory an engine takes; `share` is that of --gpu_memory_utilization."""
    if share is None and not cuda:
        return {"kv_cache_memory_bytes": CPU_CACHE}
    return {"gpu_memory_utilization": SHARE if share is None else share}


def whole_prompts(longest: int) -> dict[str, Any]:
    """Prompts that are never read in parts: on a CPU, vLLM 0.30 fails on one that has a seed."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, STEP_TOKENS)}


def refused(model: str, error: BaseException) -> StageFailed:
    """Why vLLM does not start, in its words, and what to change."""
    text = " ".join(str(error).split()) or type(error).__name__
    advice = next((todo for words, todo in ADVICE if words in text.lower()), "see its message")
    return StageFailed(
        f"vLLM does not start on model '{model}': {cut(text, 300)} To go on, {advice}, or give "
        "--backend hf."
    )
