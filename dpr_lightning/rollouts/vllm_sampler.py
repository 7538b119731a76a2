"""Answers written by vLLM, in the process and on the GPU that trains."""

import copy
import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.distributed import rank_and_world
from dpr_lightning.engine import fetches_weights, inside_of_adapters
from dpr_lightning.errors import InputError
from dpr_lightning.policies import may_untie, merged_weights
from dpr_lightning.rollouts.answers import Answers
from dpr_lightning.rollouts.external_sampler import ExternalSampler, Request
from dpr_lightning.rollouts.sampler import SamplingOptions


class VllmSampler(ExternalSampler):
    """vLLM beside the trainer: every rank has an engine, which takes the policy's weights before it writes.

    Written against the documented interface of vLLM 0.33 and its source; it has not been run with vLLM itself.

    Args:
        memory_share: of the GPU's memory, for the engine's weights and its keys and values.
        sleep: give that memory back while the policy learns.
        max_length: tokens of a prompt and its answer; None: as many as the first call needs.
        options: more arguments of ``vllm.LLM``, such as ``enforce_eager: true``, or ``dtype: bfloat16`` where float32
            weights are trained in mixed precision.
    """

    def __init__(
        self,
        memory_share: float = 0.4,
        sleep: bool = True,
        max_length: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 0 < memory_share < 1:
            raise InputError(f"`memory_share` is a share of the GPU's memory, between 0 and 1; found {memory_share}.")
        self.memory_share, self.sleep, self.max_length = memory_share, sleep, max_length
        self.options = dict(options or {})
        self._engine: Any = None
        self._asleep = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def write(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, request: Request) -> list[Answers]:
        """Answers under the weights that ``policy`` has now.

        The same seed gives a prompt the same answers wherever vLLM computes the same numbers, which it does not promise
        for batches that differ. ``options.batch_size`` is not used: the engine fills its own memory.

        Raises:
            InputError: vLLM is not installed, the policy's weights are in shards, or it is not where vLLM would be.
        """
        if fetches_weights(policy):
            raise InputError(
                "vLLM takes whole weights, and the policy's are in shards while it is sampled from. Set "
                "`sampling_weights: whole` of the strategy, or leave `sampler` out."
            )
        if self._engine is None:
            needed = request.longest_prompt + request.options.max_new_tokens
            self._engine = self._start(policy, tokenizer, self.max_length or needed)
        self._take(policy)
        inputs = [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in request.prompts]
        outputs = self._engine.generate(inputs, [_params(request, seed) for seed in request.seeds], use_tqdm=False)
        if self.sleep:
            self._engine.sleep(level=2)  # the weights too: new ones come next time
            self._asleep = True
        return [_answers(result.outputs, request.options) for result in outputs]

    def close(self) -> None:
        """End the engine: a process can have one whose memory sleeps."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
        self._engine, self._asleep, self._folder = None, False, None
        gc.collect()

    def _take(self, policy: nn.Module) -> None:
        """Give the engine the policy's weights, and forget keys and values of earlier ones."""
        if self._asleep:
            self._engine.wake_up(tags=["weights"])
        with merged_weights(policy) as (_, weights):
            arguments = {"weights_iterator": iter(weights.items()), "is_checkpoint_format": True}
            self._engine.collective_rpc("reload_weights", kwargs=arguments)
        if self._asleep:
            self._engine.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._engine.reset_prefix_cache()

    def _start(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, length: int) -> Any:
        rank, world = rank_and_world()
        single = inside_of_adapters(policy)
        index = single.device.index or 0
        if world == 1 and index > 0:
            raise InputError(
                f"The policy is on GPU {index}, and in a single process vLLM takes the first one that it sees. Say "
                f"CUDA_VISIBLE_DEVICES={index} and `trainer.devices: 1`."
            )
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(
                f"`VllmSampler` needs vLLM, which is not installed here ({error}): pip install 'dpr-lightning[vllm]'. "
                "Without `sampler`, answers are written by this package."
            ) from error
        self._folder = tempfile.TemporaryDirectory(prefix="dpr-vllm-")
        config = copy.deepcopy(single.config)
        # Wrappers of weights in shards put a name of their own before the class's.
        config.architectures = [type(single).__name__.removeprefix("FSDP")]
        if may_untie(policy):
            config.tie_word_embeddings = False
            config.get_text_config().tie_word_embeddings = False
        config.save_pretrained(self._folder.name)
        tokenizer.save_pretrained(self._folder.name)
        options: dict[str, Any] = {
            "load_format": "dummy",
            "dtype": str(single.dtype).removeprefix("torch."),
            "max_model_len": length,
            "gpu_memory_utilization": self.memory_share,
            "enable_sleep_mode": self.sleep,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
        }
        # Weights are handed over as they lie in memory, which another process could not read.
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if world > 1:
            options["distributed_executor_backend"] = "external_launcher"
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(index), "WORLD_SIZE": str(world)}
        with _as_it_was(environment):
            return LLM(model=self._folder.name, **(options | self.options))


@contextmanager
def _as_it_was(environment: dict[str, str]) -> Iterator[None]:
    """These variables within; afterwards they, the threads and the random numbers of this process are as before."""
    before, threads = {name: os.environ.get(name) for name in environment}, torch.get_num_threads()
    os.environ.update(environment)
    try:
        with isolate_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _params(request: Request, seed: int) -> Any:
    from vllm import SamplingParams

    options = request.options
    return SamplingParams(
        n=request.num_samples,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_new_tokens,
        stop=list(options.stop_strings) or None,
        stop_token_ids=list(request.stop_tokens),
        detokenize=bool(options.stop_strings),
        # Stop strings are looked for in the text that verifiers read, special tokens included.
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        ignore_eos=True,  # what ends an answer has been said; the config of a base model may know of another token
        seed=seed & ((1 << 62) - 1),
        logprobs=0,
    )


def _answers(outputs: Sequence[Any], options: SamplingOptions) -> Answers:
    """The K answers to one prompt; greedy ones have log-probabilities of 0."""
    ordered = sorted(outputs, key=lambda output: output.index)
    tokens = [[int(token) for token in output.token_ids] for output in ordered]
    logprobs = [
        [float(candidates[token].logprob) for candidates, token in zip(output.logprobs, answer, strict=True)]
        if options.temperature > 0
        else [0.0] * len(answer)
        for output, answer in zip(ordered, tokens, strict=True)
    ]
    return Answers.of(tokens, logprobs, [output.finish_reason == "stop" for output in ordered])
