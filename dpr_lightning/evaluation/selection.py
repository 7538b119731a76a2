"""Answers selected by a reward while they are sampled, without any training: best of n, whole or chunk by chunk."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.rollouts.answers import Answers, joined
from dpr_lightning.types import Rollouts

Score = Callable[[Rollouts], Tensor]
"""The reward of each row, [B] nats: of the tokens in its mask."""


def best_of(
    policy: nn.Module,
    score: Score,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    *,
    candidates: int,
    chunk: int | None = None,
    stop_tokens: Sequence[int],
    pad_token: int,
    num_samples: int = 1,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Sample answers whose every chunk is the best of several by a reward.

    Args:
        policy: samples the candidates.
        score: of the tokens of one chunk, conditioned on all tokens before them.
        prompts: token ids.
        options: temperature, length limit and the like.
        candidates: n; 1 is plain sampling.
        chunk: tokens between selections; None: whole answers, best-of-n.
        stop_tokens: ids that end an answer.
        pad_token: fills the right of shorter rows.
        num_samples: answers a prompt, independent of each other.
        seed: of the random streams.
        tokenizer: reads answers for the stop strings of ``options``.
        progress: called with the number of answers finished.

    Returns:
        rollouts on the CPU as of :func:`~dpr_lightning.rollouts.sample`; ``logprob`` is the policy's, and not
        that of the selection, which has no density.

    Raises:
        InputError: fewer than one candidate, sample or token a chunk.
    """
    if candidates < 1 or num_samples < 1 or (chunk is not None and chunk < 1):
        raise InputError(
            f"`candidates`, `chunk` and samples count from 1; found {candidates}, {chunk} and {num_samples}."
        )
    length = options.max_new_tokens if chunk is None else min(chunk, options.max_new_tokens)
    rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
    starts = [len(row) for row in rows]
    logprobs: list[list[float]] = [[] for _ in rows]
    unfinished, terminated = list(range(len(rows))), [False] * len(rows)
    for begin in range(0, options.max_new_tokens, length):
        sampled = sample(
            policy,
            [rows[row] for row in unfinished],
            replace(options, max_new_tokens=min(length, options.max_new_tokens - begin)),
            stop_tokens=stop_tokens,
            pad_token=pad_token,
            num_samples=candidates,
            seed=seed + 7_368_787 * begin,
            prompt_ids=unfinished,
            tokenizer=tokenizer,
            begun=[len(rows[row]) - starts[row] for row in unfinished],
        )
        best = score(sampled).reshape(len(unfinished), candidates).argmax(1).tolist()
        picked = [index * candidates + pick for index, pick in enumerate(best)]
        for row, pick in zip(unfinished, picked, strict=True):
            rows[row] += sampled.tokens[pick][sampled.mask[pick]].tolist()
            logprobs[row] += sampled.logprob[pick][: int(sampled.mask[pick].sum())].tolist()
            terminated[row] = bool(sampled.terminated[pick])
        if progress is not None:
            progress(sum(terminated[row] for row in unfinished))
        unfinished = [row for row in unfinished if not terminated[row]]
        if not unfinished:
            break
    if progress is not None:
        progress(len(unfinished))
    rows_of_prompts = [slice(start, start + num_samples) for start in range(0, len(rows), num_samples)]
    answer_tokens = [row[start:] for row, start in zip(rows, starts, strict=True)]
    answers = [Answers.of(answer_tokens[part], logprobs[part], terminated[part]) for part in rows_of_prompts]
    return joined(prompts, answers, range(len(prompts)), pad_token)
