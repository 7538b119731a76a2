"""Prompts in, sampled token ids and the log-probabilities they were drawn with out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.engine import Lockstep, check_positions, evaluating, model_device
from dpr_lightning.engine.decoding import Combine, sample_tokens, single_model
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.decoding.kv_cache import fill_gaps
from dpr_lightning.engine.decoding.prefill import TOKENS_AT_ONCE
from dpr_lightning.engine.decoding.routes import Decoder, reads_equal_lengths
from dpr_lightning.errors import InputError
from dpr_lightning.rollouts.answers import Answers, joined
from dpr_lightning.rollouts.ending import Ending, StopStrings
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.types import Rollouts

_STEPS = 64
"""Tokens whose random numbers are made at once."""


class GivenUp(Exception):
    """Raised where the answers are not needed any more."""


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
        strings: object = self.stop_strings
        if isinstance(strings, str) or not all(self.stop_strings):
            raise InputError(
                f"`stop_strings` is a list of texts that are not empty; found {strings!r}. One alone is written "
                '["\\n\\n"].'
            )
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))  # a list in YAML


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
    combine: Combine = single_model,
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
    empty = [index for index, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise InputError(f"Prompt number {empty[0] + 1} of {len(prompts)} is empty; a policy needs a token to start.")
    longest = max(map(len, prompts))
    what = f"The longest prompt has {longest:,} tokens and `max_new_tokens` is {options.max_new_tokens:,}"
    for source in sources:
        check_positions(source, longest + options.max_new_tokens, what, _shorter_prompts)
    identities = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
    answered = [0] * len(prompts) if begun is None else list(begun)
    strings = StopStrings(options.stop_strings, tokenizer) if tokenizer is not None and options.stop_strings else None
    # Prompts of like length share a batch, so that little padding is read.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    finished: dict[int, Answers] = {}
    device = model_device(sources[0])
    with torch.no_grad(), evaluating(sources), Lockstep(sources) as lockstep:
        decoders = [Decoder(model) for model in sources]
        at_once = prompts_at_once(decoders, options, num_samples, longest + options.max_new_tokens)
        equal = reads_equal_lengths([decoder.new_state(options.max_new_tokens) for decoder in decoders])
        for indices in _batches(order, [len(prompt) for prompt in prompts], at_once, equal):
            batch_prompts = [prompts[index] for index in indices]
            opening = [
                list(prompt[len(prompt) - answered[index] :])
                for index, prompt in zip(indices, batch_prompts, strict=True)
            ]
            ending = Ending(stop_tokens, strings, opening, num_samples)
            states = [decoder.new_state(options.max_new_tokens) for decoder in decoders]
            batch = DecodeBatch(states, combine, pad_token, device, lockstep)
            decoding = _Decoding(batch, options, ending, pad_token, device, unwanted)
            answers = decoding.run(batch_prompts, [identities[index] for index in indices], num_samples, seed)
            finished.update(zip(indices, answers, strict=True))
            if progress is not None:
                progress(len(indices) * num_samples)
    return joined(prompts, [finished[index] for index in range(len(prompts))], identities, pad_token)


def prompts_at_once(decoders: Sequence[Decoder], options: SamplingOptions, num_samples: int, longest: int) -> int:
    """Prompts of a batch whose rows have at most ``longest`` tokens; fewer where each step reads whole rows again."""
    at_once = max(1, options.batch_size // num_samples)
    if any(decoder.recomputes for decoder in decoders):
        at_once = max(1, min(at_once, TOKENS_AT_ONCE // (longest * num_samples)))
    return at_once


def _batches(order: Sequence[int], lengths: Sequence[int], at_once: int, equal: bool) -> Iterator[Sequence[int]]:
    """Prompts that are answered together, at most ``at_once``; ``equal``: only those of one length."""
    groups = [list(group) for _, group in groupby(order, key=lambda index: lengths[index])] if equal else [order]
    for group in groups:
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _shorter_prompts(limit: int) -> str:
    return f"Lower `max_new_tokens`, or leave out prompts, so that both have at most {limit:,}."


class _Decoding:
    """One batch being decoded."""

    def __init__(
        self,
        batch: DecodeBatch,
        options: SamplingOptions,
        ending: Ending,
        pad_token: int,
        device: torch.device,
        unwanted: Callable[[], bool] | None,
    ) -> None:
        self._batch, self._options, self._ending, self._pad_token = batch, options, ending, pad_token
        self._device = device
        self._unwanted = unwanted if unwanted is not None else lambda: False

    def run(
        self, prompts: Sequence[Sequence[int]], identities: Sequence[int], num_samples: int, seed: int
    ) -> list[Answers]:
        options, device = self._options, self._device
        limit, count = options.max_new_tokens, len(prompts) * num_samples
        logits = self._batch.prefill(prompts, num_samples)
        vocabulary = logits.shape[-1]
        identity = torch.tensor(identities, device=device).repeat_interleave(num_samples)
        key = sample_keys(seed, identity, torch.arange(num_samples, device=device).repeat(len(prompts)))
        tokens = torch.full((count, limit), self._pad_token, device=device)
        logprob = torch.zeros(count, limit, dtype=torch.float32, device=device)
        length = torch.full((count,), limit, device=device)
        terminated = torch.zeros(count, dtype=torch.bool, device=device)
        row, token = torch.arange(count, device=device), tokens[:, 0]
        for step in range(limit):
            if self._unwanted():
                raise GivenUp
            if step % _STEPS == 0:
                position = torch.arange(step, min(limit, step + _STEPS), device=device)
                uniform = counter_uniform(key, position)
            now = uniform[:, step % _STEPS]
            if step > 0:
                logits = self._batch.step(token)
            token, sampled_logprob = sample_tokens(logits, now, options.temperature, options.top_p)
            del logits
            tokens[row, step] = token
            logprob[row, step] = sampled_logprob
            ended = self._ending(token, row, tokens[:, : step + 1], vocabulary)
            ends = int(ended.sum())
            if ends:
                terminated[row[ended]] = True
                length[row[ended]] = step + 1
            if step + 1 == limit or ends == len(row):
                break
            if ends:
                order = fill_gaps(ended)
                row, key, token, uniform = row[order], key[order], token[order], uniform[order]
                self._batch.keep(order)
        shape = (len(prompts), num_samples)
        parts = (tokens.cpu(), logprob.cpu(), length.cpu(), terminated.cpu())
        split = [part.reshape(*shape, *part.shape[1:]) for part in parts]
        return [Answers(*(part[index] for part in split)) for index in range(len(prompts))]
