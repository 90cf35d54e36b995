"""Sampling with vLLM: all prompts are in the engine at once, and answers are given as they end.

On a GPU, a LoRA adapter is served over its base as it is; one that also holds whole modules, which
vLLM refuses, is merged first, as all are on a CPU, where vLLM's kernels for adapters take minutes a
step (--merge_adapter decides otherwise). Every prompt has a seed of its own, so that what is drawn
does not depend on which others are under way. Scheduling stays in this process (TP workers apart),
which vLLM recommends for runs that are to be reproduced.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuning.evaluation.config import PassAtKConfig
from tuning.evaluation.generators import GENERATORS
from tuning.inference.beams import BeamSearch
from tuning.inference.generator import (
    Messages,
    Portions,
    context_of,
    ends_of,
    seed_of,
    token_ids,
)
from tuning.inference.vllm_start import (
    DISTURBED,
    STARTS,
    environment,
    memory,
    refused,
    whole_prompts,
)
from tuning.runs import interrupt
from tuning.runs.atomic import read_object
from tuning.runs.errors import Interrupted, StageFailed, UserError
from tuning.runs.log import logger
from tuning.runs.progress import tell_part
from tuning.weights.artifact import Artifact
from tuning.weights.config import in_half
from tuning.weights.hub import lacking, snapshot_folder
from tuning.weights.merged import merged
from tuning.weights.reading import read_config

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks of adapters that vLLM 0.30 can be made for."""


@contextlib.contextmanager
def opened(artifact: Artifact) -> Iterator[VLLMGenerator]:
    """A generator whose engine is started with the first prompts, and ended with the block."""
    GENERATORS["vllm"].require()
    with tempfile.TemporaryDirectory(prefix="tuning-vllm-") as folder:
        generator = VLLMGenerator(artifact, Path(folder))
        try:
            yield generator
        finally:
            generator.close()


class VLLMGenerator:
    """The Generator on an artifact, with its own engine; `folder` is for its tokenizer."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        from tuning.weights import loading

        self._model = artifact.model
        self._artifact = _checked(artifact)
        self._folder = folder
        self._llm: Any = None
        self._longest = 0
        self._served = 1
        self.tokenizer = loading.open_tokenizer(artifact)
        config = read_config(self._artifact.base)
        self.tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        self.ends = ends_of(self.tokenizer, _generation_defaults(self._artifact.base, config))
        self.context = context_of(config)

    def room(self, prompts: Sequence[Messages]) -> list[int]:
        """See Generator."""
        return [self.context - len(ids) for ids in token_ids(self.tokenizer, prompts)]

    def answers(
        self,
        prompts: Sequence[Messages],
        sampling: PassAtKConfig,
        run_hash: str,
        done: Collection[int] = (),
    ) -> Portions:
        """See Generator; a prompt that leaves no room gets empty answers, as vLLM takes none."""
        asked = dict(enumerate(token_ids(self.tokenizer, prompts)))
        left = {place: ids for place, ids in asked.items() if place not in done}
        fits = {place: ids for place, ids in left.items() if len(ids) < self.context}
        yield [(place, [""] * sampling.n_samples) for place in left if place not in fits]
        if not fits:
            return
        longest = max(map(len, fits.values())) + sampling.max_new_tokens
        self._require_engine(sampling, min(longest, self.context))
        if sampling.decoding == "beam":
            yield from self._beams(fits, sampling)
        else:
            yield from self._sampled(fits, sampling, run_hash)

    def serve(self, artifact: Artifact) -> None:
        """Answer as another artifact of the same model from now on: another adapter over the same
        base, or other whole weights, which an engine that runs reads in place of its own.
        """
        self._artifact = _checked(artifact)
        self._served += 1
        if self._llm is not None:
            if artifact.adapter is None:
                where = {"weights_path": artifact.base}
                self._llm.collective_rpc("reload_weights", kwargs=where)
            self._llm.reset_prefix_cache()

    def _require_engine(self, sampling: PassAtKConfig, longest: int) -> None:
        """Have an engine for sequences of `longest` tokens: the one there is, or a new one."""
        if self._llm is not None and longest > self._longest:
            self.close()
        if self._llm is None:
            self._llm, self._longest = self._started(sampling, longest), longest

    def _sampled(
        self, asked: dict[int, list[int]], sampling: PassAtKConfig, run_hash: str
    ) -> Portions:
        from vllm import SamplingParams

        def drawn(place: int) -> Any:
            return SamplingParams(
                n=sampling.n_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=min(sampling.max_new_tokens, self.context - len(asked[place])),
                seed=seed_of(run_hash, sampling.sampling_seed, place) >> 1,  # each answer adds one
                stop_token_ids=self.ends,
                detokenize=False,
            )

        places = list(asked)
        prompts, params = [asked[place] for place in places], [drawn(place) for place in places]
        for ended in self._outputs(prompts, params):
            yield [(places[n], self._texts(output.outputs)) for n, output in ended]

    def _outputs(
        self, prompts: list[list[int]], params: list[Any]
    ) -> Iterator[list[tuple[int, Any]]]:
        """After each step of the engine, (number of the prompt, its RequestOutput) of all that have
        ended with it.
        """
        engine = self._llm.llm_engine
        ids = self._llm.enqueue(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            params,
            lora_request=self._lora(),
            use_tqdm=False,
        )
        # An output has the number of its request, to which vLLM adds letters of its own inside.
        numbers = {id.partition("-")[0]: number for number, id in enumerate(ids)}
        answers = sum(one.n for one in params)
        try:
            while engine.has_unfinished_requests():
                ended = [output for output in self._stepped(engine) if output.finished]
                tell_part("answer", answers - engine.get_num_unfinished_requests(), answers)
                yield [(numbers[output.request_id], output) for output in ended]
        finally:
            engine.abort_request(ids, internal=True)

    def _stepped(self, engine: Any) -> Any:
        """The outputs of a step; a worker that a signal to all processes ended is no failure."""
        try:
            return engine.step()
        except Exception:
            if interrupt.asked_to_stop():
                raise Interrupted from None
            raise

    def _beams(self, asked: dict[int, list[int]], sampling: PassAtKConfig) -> Portions:
        from vllm import SamplingParams

        places = list(asked)
        for start in range(0, len(places), sampling.batch_size):
            batch = places[start : start + sampling.batch_size]
            searches = {place: self._search(sampling, len(asked[place])) for place in batch}
            while open_ones := [place for place in batch if not searches[place].over]:
                beams = [(place, beam) for place in open_ones for beam in searches[place].running]
                asks = SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    logprobs=searches[batch[0]].candidates,
                    detokenize=False,
                )
                prompts = [asked[place] + list(tokens) for place, (_, tokens) in beams]
                after: dict[int, dict[int, float]] = {}
                for ended in self._outputs(prompts, [asks] * len(prompts)):
                    after |= {number: _log_probabilities(output) for number, output in ended}
                    yield []
                following = iter([after[number] for number in range(len(beams))])
                for place in open_ones:
                    searches[place].advance([next(following) for _ in searches[place].running])
            yield [(place, self._best(searches[place])) for place in batch]

    def _search(self, sampling: PassAtKConfig, prompt: int) -> BeamSearch:
        longest = min(sampling.max_new_tokens, self.context - prompt)
        return BeamSearch(width=sampling.n_samples, ends=self.ends, longest=longest)

    def _best(self, search: BeamSearch) -> list[str]:
        """The texts of the best beams; as many as the search is wide."""
        return [self._text(tokens) for _, tokens in search.ended]

    def _texts(self, outputs: Any) -> list[str]:
        return [self._text(o.token_ids) for o in sorted(outputs, key=lambda o: o.index)]

    def _text(self, ids: Sequence[int]) -> str:
        """The text up to the first token that ends a sequence."""
        end = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        return str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True))

    def _lora(self) -> Any:
        if self._artifact.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        # An engine keeps what it has read by number, and what it has computed by name.
        number = self._served
        return LoRARequest(f"adapter-{number}", number, str(self._artifact.adapter))

    def _started(self, sampling: PassAtKConfig, longest: int) -> Any:
        """The engine, for sequences of at most `longest` tokens; started again where what failed
        was that others gave memory of the GPU back.
        """
        import torch

        cuda = torch.cuda.is_available()
        environment(cuda=cuda)
        for later in reversed(range(STARTS)):
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()  # what a training in this process left, or a start
            try:
                return self._start(sampling, longest, cuda=cuda)
            except (UserError, StageFailed, MemoryError):
                raise
            except Exception as error:
                with contextlib.suppress(Exception):
                    _clean_up()
                if not later or DISTURBED not in str(error):
                    raise refused(self._model, error) from error
            if interrupt.asked_to_stop():
                raise Interrupted
            logger.warning("another process gave memory of the GPU back; vLLM is started again")
        raise AssertionError("the last start ends or raises")

    def _start(self, sampling: PassAtKConfig, longest: int, *, cuda: bool) -> Any:
        from vllm import LLM

        self._artifact = served(self._artifact, sampling.merge_adapter)
        if not cuda:
            self._require_heads()
        return LLM(**self._settings(sampling, longest, cuda=cuda))

    def _require_heads(self) -> None:
        """Raise StageFailed for heads that vLLM's attention on a CPU takes and computes wrongly."""
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        config = read_config(self._artifact.base).get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        allowed = CPUAttentionBackend.get_supported_head_sizes()
        if size not in allowed:
            raise StageFailed(
                f"vLLM does not start on model '{self._model}', which has heads of {size} "
                f"dimensions, and on a CPU takes {', '.join(map(str, allowed))}; give --backend hf."
            )

    def _settings(self, sampling: PassAtKConfig, longest: int, *, cuda: bool) -> dict[str, Any]:
        base, adapter = self._artifact.base, self._artifact.adapter
        half = in_half(self._artifact.dtype, cuda=cuda)
        lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": _rank_of(adapter)}
        return {
            "model": base if Path(base).is_dir() or lacking(base) else str(snapshot_folder(base)),
            "tokenizer": str(self._folder),
            "dtype": "bfloat16" if half else "float32",
            "max_model_len": longest,
            "generation_config": "vllm",  # nothing of the model's own defaults
            "tensor_parallel_size": sampling.tensor_parallel_size,
            "enable_prefix_caching": sampling.enable_prefix_caching,
            "enforce_eager": sampling.enforce_eager or not cuda,
            "use_tqdm_on_load": False,
            "max_logprobs": max(20, self._search(sampling, 0).candidates),
            **({} if cuda else whole_prompts(longest)),
            **memory(sampling.gpu_memory_utilization, cuda=cuda),
            **lora,
        }

    def close(self) -> None:
        """End the engine and free its memory."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        _clean_up()


def _clean_up() -> None:
    """End the process group of an engine, or of one that did not start, and free its memory."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _log_probabilities(output: Any) -> dict[int, float]:
    """Of the likeliest tokens after a prompt, by token."""
    return {token: found.logprob for token, found in output.outputs[0].logprobs[0].items()}


def _checked(artifact: Artifact) -> Artifact:
    """The artifact; UserError where its adapter is none."""
    adapter = artifact.adapter
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        raise UserError(f"'{adapter}' holds no adapter: it has no adapter_config.json.")
    return artifact


def served(artifact: Artifact, merge: bool | None = None) -> Artifact:
    """The artifact as vLLM gets it: an adapter merged into its base where `is_merged` says so, and
    a base in 4 bits as the weights that it stands for.
    """
    whole = artifact.load_in_4bit or is_merged(artifact, merge)
    return merged(artifact) if whole else artifact


def is_merged(artifact: Artifact, merge: bool | None = None) -> bool:
    """Whether vLLM gets an adapter merged into its base: if asked for, if vLLM would refuse it, or,
    by default, on a CPU.
    """
    import torch

    if artifact.adapter is None:
        return False
    config = read_object(artifact.adapter / "adapter_config.json") or {}
    refused = config.get("modules_to_save") or config.get("use_dora") or config["r"] > RANKS[-1]
    asked = not torch.cuda.is_available() if merge is None else merge
    return bool(asked or refused)


def _rank_of(adapter: Path) -> int:
    """The smallest rank that an engine can be made for and that the adapter fits."""
    rank = (read_object(adapter / "adapter_config.json") or {})["r"]
    return next(most for most in RANKS if rank <= most)


def _generation_defaults(base: str, config: Any) -> Any:
    """The generation defaults of a base; those of its config where it brings none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:
        return GenerationConfig.from_model_config(config)
