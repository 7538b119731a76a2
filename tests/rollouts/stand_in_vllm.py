"""A module that is imported as vLLM: the parts of its interface that are used, as vLLM 0.33 documents them."""

import math
import os
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpr_lightning.rollouts import counter_uniform


@dataclass
class SamplingParams:
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    stop: list[str] | None
    stop_token_ids: list[int]
    detokenize: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    ignore_eos: bool
    seed: int
    logprobs: int

    def __post_init__(self) -> None:
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are only supported when detokenize is True.")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    """Draws token by token with the weights it received; its logits are off by ``noise``, as those of kernels are."""

    noise = 0.0
    instances: ClassVar[list["LLM"]] = []

    def __init__(self, model: str, **options: Any) -> None:
        assert options["load_format"] == "dummy"
        assert options["logprobs_mode"] == "processed_logprobs"
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        self.options, self.calls = options, list[str]()
        config = AutoConfig.from_pretrained(model)
        assert config.architectures == ["LlamaForCausalLM"]
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.llm_engine = self.engine_core = self
        torch.manual_seed(0)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.asleep: set[str] = set()
        LLM.instances.append(self)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def sleep(self, level: int) -> None:
        assert not self.asleep
        assert level == 2
        self.calls.append("sleep")
        self.asleep = {"weights", "kv_cache"}
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.fill_(math.nan)

    def wake_up(self, tags: list[str]) -> None:
        assert set(tags) <= self.asleep
        self.calls.append(f"wake {tags[0]}")
        self.asleep -= set(tags)

    def reset_prefix_cache(self) -> None:
        self.calls.append("forget")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        assert kwargs["is_checkpoint_format"]
        assert "weights" not in self.asleep
        self.calls.append("weights")
        state = self.model.state_dict()
        received = dict(kwargs["weights_iterator"])
        assert set(received) == set(state)
        with torch.no_grad():
            for name, weight in received.items():
                state[name].copy_(weight)

    @torch.no_grad()
    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        assert not self.asleep
        self.calls.append("generate")
        return [
            RequestOutput(self._answers(prompt["prompt_token_ids"], parameters)[::-1])
            for prompt, parameters in zip(prompts, params, strict=True)
        ]

    def _answers(self, prompt: list[int], parameters: SamplingParams) -> list[CompletionOutput]:
        """Answers to a prompt, all of them a token further in each step."""
        assert len(prompt) + parameters.max_tokens <= self.options["max_model_len"]
        torch.rand(7)  # engines draw random numbers
        results = [CompletionOutput(index, finish_reason="length") for index in range(parameters.n)]
        unfinished = results
        for step in range(parameters.max_tokens):
            tokens = torch.tensor([[*prompt, *result.token_ids] for result in unfinished])
            logits = self.model(tokens).logits[:, -1].double() / max(parameters.temperature, 1e-6)
            wave = torch.sin(torch.arange(logits.shape[1]) * (1.0 + len(prompt) + step))
            logprob = (logits + self.noise * wave).log_softmax(-1)
            seeds = torch.tensor([parameters.seed + result.index for result in unfinished])
            uniform = counter_uniform(seeds, torch.tensor([step]))
            sampled = torch.searchsorted(logprob.exp().cumsum(1), uniform).squeeze(1).clamp_max(logits.shape[1] - 1)
            if parameters.temperature == 0:
                sampled = logprob.argmax(1)
            for result, token, of_row in zip(unfinished, sampled.tolist(), logprob, strict=True):
                result.token_ids.append(token)
                result.logprobs.append({token: Logprob(float(of_row[token]), 1)})
                if self._ends(result, parameters):
                    result.finish_reason = "stop"
            unfinished = [result for result in unfinished if result.finish_reason == "length"]
            if not unfinished:
                break
        return results

    def _ends(self, result: CompletionOutput, parameters: SamplingParams) -> bool:
        token, text = result.token_ids[-1], ""
        if parameters.stop and parameters.detokenize:
            text = self.tokenizer.decode(result.token_ids, skip_special_tokens=parameters.skip_special_tokens)
        eos = not parameters.ignore_eos and token == self.model.config.eos_token_id
        return eos or token in parameters.stop_token_ids or any(string in text for string in parameters.stop or ())


def stand_in() -> ModuleType:
    """To be put into ``sys.modules`` as vllm."""
    module = ModuleType("vllm")
    LLM.instances = []
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    return module
