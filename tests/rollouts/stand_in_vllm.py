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
            RequestOutput(
                [self._answer(prompt["prompt_token_ids"], parameters, index) for index in reversed(range(parameters.n))]
            )
            for prompt, parameters in zip(prompts, params, strict=True)
        ]

    def _answer(self, prompt: list[int], parameters: SamplingParams, index: int) -> CompletionOutput:
        result = CompletionOutput(index)
        assert len(prompt) + parameters.max_tokens <= self.options["max_model_len"]
        torch.rand(7)  # engines draw random numbers
        for step in range(parameters.max_tokens):
            tokens = torch.tensor([[*prompt, *result.token_ids]])
            logits = self.model(tokens).logits[0, -1].double() / max(parameters.temperature, 1e-6)
            wave = torch.sin(torch.arange(len(logits)) * (1.0 + len(prompt) + step))
            logprob = (logits + self.noise * wave).log_softmax(-1)
            uniform = counter_uniform(torch.tensor([parameters.seed + index]), torch.tensor([step])).squeeze(1)
            token = int(torch.searchsorted(logprob.exp().cumsum(0), uniform).clamp_max(len(logprob) - 1))
            if parameters.temperature == 0:
                token = int(logprob.argmax())
            result.token_ids.append(token)
            result.logprobs.append({token: Logprob(float(logprob[token]), 1)})
            text = (
                self.tokenizer.decode(result.token_ids, skip_special_tokens=parameters.skip_special_tokens)
                if parameters.detokenize
                else ""
            )
            eos = not parameters.ignore_eos and token == self.model.config.eos_token_id
            if eos or token in parameters.stop_token_ids or any(string in text for string in parameters.stop or ()):
                result.finish_reason = "stop"
                return result
        result.finish_reason = "length"
        return result


def stand_in() -> ModuleType:
    """To be put into ``sys.modules`` as vllm."""
    module = ModuleType("vllm")
    LLM.instances = []
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    return module
