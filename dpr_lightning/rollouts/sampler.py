"""Prompts in, sampled token ids and the log-probabilities they were drawn with out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError
from dpr_lightning.policies import Lockstep, evaluating, model_device
from dpr_lightning.rollouts.answers import Answers, joined
from dpr_lightning.rollouts.cache import RoomyLayer, fill_gaps, keep_rows
from dpr_lightning.rollouts.drawing import draw
from dpr_lightning.rollouts.ending import Ending, StopStrings
from dpr_lightning.rollouts.one_token import OneTokenPass, knows
from dpr_lightning.rollouts.prompt_keys import PromptKeys
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.rollouts.reading import ask, read_prompts
from dpr_lightning.types import Rollouts

_STEPS = 64
"""Tokens whose random numbers are made at once."""
Combine = Callable[[list[Tensor]], Tensor]
"""Turns the log-probabilities [B, V] of several models into the logits to sample from."""


class GivenUp(Exception):
    """Nobody wanted the answers any more."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn.

    Args:
        max_new_tokens: length limit of an answer, in tokens; one that reaches it is truncated, not terminated.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: draw from the smallest set of tokens with this probability. 1 leaves the distribution whole, which
            on-policy training needs.
        batch_size: sequences decoded at once; a limit on memory that changes no sample.
        stop_strings: texts that end an answer, beside the tokens that do. The token that completes one belongs to the
            answer, which is then terminated.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 512
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError("`max_new_tokens` and `batch_size` must be at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"`temperature` must be ≥ 0 and `top_p` in (0, 1]; found {self.temperature} and {self.top_p}."
            )
        found: object = self.stop_strings
        if isinstance(found, str) or not all(self.stop_strings):
            raise InputError(
                f"`stop_strings` is a list of texts that are not empty; found {found!r}. One alone is written "
                '["\\n\\n"].'
            )
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))  # a list in YAML


def only(logprobs: list[Tensor]) -> Tensor:
    """One model, as it is."""
    return logprobs[0]


def sample(
    models: nn.Module | Sequence[nn.Module],
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    *,
    stop_tokens: Sequence[int],
    pad_token: int,
    num_samples: int = 1,
    seed: int = 0,
    prompt_ids: Sequence[int] | None = None,
    combine: Combine = only,
    tokenizer: PreTrainedTokenizerBase | None = None,
    begun: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    unwanted: Callable[[], bool] | None = None,
) -> Rollouts:
    """Let a policy answer every prompt ``num_samples`` times.

    The prompt is read once for all its samples; finished rows leave the batch; each sample has a random stream of its
    own, set by (seed, prompt id, sample), so it does not depend on the batch it is drawn in.

    Args:
        models: the policy, or several whose log-probabilities ``combine`` turns into one distribution.
        prompts: token ids.
        options: temperature, length limit and the like.
        stop_tokens: ids that end an answer; they belong to it.
        pad_token: fills the right of shorter rows.
        num_samples: K answers a prompt; they lie next to each other in the result.
        seed: of the random streams.
        prompt_ids: identity of each prompt for the random streams and the result; its place by default.
        combine: see ``models``.
        tokenizer: reads answers for stop strings; needed where ``options`` has some.
        begun: of each prompt, how many of its last tokens are the beginning of its answer, where a stop string may have
            begun as well; none by default.
        progress: called with the number of sequences finished.
        unwanted: asked before every token whether to give up.

    Returns:
        rollouts on the CPU; ``logprob`` is under the distribution really drawn from, temperature and top-p included
        (0 everywhere when greedy).

    Raises:
        InputError: there is no prompt, one is empty, or the policy gives log-probabilities that are not numbers.
        ValueError: stop strings without a tokenizer.
        GivenUp: ``unwanted`` said so.
    """
    if options.stop_strings and tokenizer is None:
        raise ValueError("Stop strings are looked for in text: `sample` takes the tokenizer with them.")
    sources = [models] if isinstance(models, nn.Module) else list(models)
    if len(prompts) == 0:
        raise InputError("There are no prompts to answer.")
    if num_samples < 1:
        raise InputError(f"Each prompt takes at least one sample; found {num_samples}.")
    empty = [place for place, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise InputError(f"Prompt number {empty[0] + 1} of {len(prompts)} is empty; a policy needs a token to start.")
    identities = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
    answered = [0] * len(prompts) if begun is None else list(begun)
    strings = StopStrings(options.stop_strings, tokenizer) if tokenizer is not None and options.stop_strings else None
    # Prompts of like length share a batch, so that little padding is read.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    at_once = max(1, options.batch_size // num_samples)
    finished: dict[int, Answers] = {}
    with torch.no_grad(), evaluating(sources), Lockstep(sources) as lockstep:
        one_token = [OneTokenPass(model) if knows(model) else None for model in sources]
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            asked = [prompts[place] for place in places]
            opening = [
                list(prompt[len(prompt) - answered[place] :]) for place, prompt in zip(places, asked, strict=True)
            ]
            ending = Ending(stop_tokens, strings, opening, num_samples)
            decoding = _Decoding(sources, one_token, combine, options, ending, pad_token, lockstep, unwanted)
            answers = decoding.run(asked, [identities[place] for place in places], num_samples, seed)
            finished.update(zip(places, answers, strict=True))
            if progress is not None:
                progress(len(places) * num_samples)
    return joined(prompts, [finished[place] for place in range(len(prompts))], identities, pad_token)


class _Decoding:
    """One batch being decoded; rows that end are dropped from every tensor and every cache."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        one_token: Sequence[OneTokenPass | None],
        combine: Combine,
        options: SamplingOptions,
        ending: Ending,
        pad_token: int,
        lockstep: Lockstep,
        unwanted: Callable[[], bool] | None,
    ) -> None:
        self.models = models
        self.one_token = one_token
        self.lockstep = lockstep
        self.unwanted = unwanted if unwanted is not None else lambda: False
        self.combine = combine
        self.options = options
        self.pad_token = pad_token
        self.device = model_device(models[0])
        self.ending = ending

    def run(
        self, prompts: Sequence[Sequence[int]], identities: Sequence[int], num_samples: int, seed: int
    ) -> list[Answers]:
        limit, count = self.options.max_new_tokens, len(prompts) * num_samples
        logits = self._read(prompts, num_samples)
        identity = torch.tensor(identities, device=self.device).repeat_interleave(num_samples)
        key = sample_keys(seed, identity, torch.arange(num_samples, device=self.device).repeat(len(prompts)))
        tokens = torch.full((count, limit), self.pad_token, device=self.device)
        logprob = torch.zeros(count, limit, dtype=torch.float32, device=self.device)
        length = torch.full((count,), limit, device=self.device)
        terminated = torch.zeros(count, dtype=torch.bool, device=self.device)
        row = torch.arange(count, device=self.device)
        for step in range(limit):
            if self.unwanted():
                raise GivenUp
            if step % _STEPS == 0:
                position = torch.arange(step, min(limit, step + _STEPS), device=self.device)
                uniform = counter_uniform(key, position)
            chosen, chosen_logprob = draw(
                logits, uniform[:, step % _STEPS], self.options.temperature, self.options.top_p
            )
            tokens[row, step] = chosen
            logprob[row, step] = chosen_logprob
            ended = self.ending(chosen, row, tokens[:, : step + 1], logits.shape[-1])
            ends = int(ended.sum())
            if ends:
                terminated[row[ended]] = True
                length[row[ended]] = step + 1
            if step + 1 == limit or ends == len(ended):
                break
            if ends:
                order = fill_gaps(ended)
                row, key, chosen, uniform = row[order], key[order], chosen[order], uniform[order]
                self._keep(order)
            logits = self._step(chosen)
        shape = (len(prompts), num_samples)
        parts = (tokens.cpu(), logprob.cpu(), length.cpu(), terminated.cpu())
        split = [part.reshape(*shape, *part.shape[1:]) for part in parts]
        return [Answers(*(part[place] for part in split)) for place in range(len(prompts))]

    def _read(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Read every prompt once for all its samples."""
        read = read_prompts(self.models, prompts, self.options.max_new_tokens, self.pad_token, self.lockstep)
        self.caches, self.attention, self.position = read.caches, read.attention, read.length
        self.prompt_keys = [
            self._share(cache, num_samples) if quick is not None and num_samples > 1 else None
            for cache, quick in zip(self.caches, self.one_token, strict=True)
        ]
        for cache, shared in zip(self.caches, self.prompt_keys, strict=True):
            if shared is None:
                cache.batch_repeat_interleave(num_samples)
        if self.attention is not None:
            self.attention = self.attention.repeat_interleave(num_samples, 0)
        self.position = self.position.repeat_interleave(num_samples, 0)
        return self._combined(read.logits).repeat_interleave(num_samples, 0)

    def _share(self, cache: Any, num_samples: int) -> PromptKeys:
        """Take what was read out of a cache, so that no sample has a copy, and leave room for their own tokens."""
        seen = None if self.attention is None else self.attention.bool()
        read = []
        for place, layer in enumerate(cache.layers):  # of which none is there twice for longer than its own copy takes
            read.append((layer.keys.contiguous(), layer.values.contiguous()))
            cache.layers[place] = RoomyLayer(self.options.max_new_tokens)
        return PromptKeys(read, seen, num_samples)

    def _step(self, chosen: Tensor) -> Tensor:
        if self.attention is not None:
            self.attention = torch.cat([self.attention, self.attention.new_ones(len(chosen), 1)], 1)
        mask = None if self.attention is None else self.attention.bool()
        self.lockstep.begin()
        logits = []
        for place, quick in enumerate(self.one_token):
            if quick is not None:
                shared = self.prompt_keys[place]
                own = mask if shared is None else None  # of its own, a sample has all tokens
                logits.append(quick(chosen, self.position, own, self.caches[place].layers, shared))
            else:
                position = self.position.unsqueeze(1)
                logits.append(
                    ask(self.models[place], self.caches[place], chosen.unsqueeze(1), self.attention, position)
                )
        self.position = self.position + 1
        return self._combined(logits)

    def _combined(self, logits: list[Tensor]) -> Tensor:
        # One model's logits serve as they are: what is drawn from them is normalised there.
        return self.combine(logits if self.combine is only else [part.float().log_softmax(-1) for part in logits])

    def _keep(self, order: Tensor) -> None:
        for cache, shared in zip(self.caches, self.prompt_keys, strict=True):
            keep_rows(cache, order)
            if shared is not None:
                shared.keep(order)
        self.position = self.position[order]
        if self.attention is not None:
            self.attention = self.attention[order]
