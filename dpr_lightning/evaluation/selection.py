"""Answers picked by a reward while they are written, without any training: best of n, whole or chunk by chunk."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.rollouts.answers import Answers, joined
from dpr_lightning.types import Rollouts

Score = Callable[[Rollouts], Tensor]
"""The reward of each row, [B] nats: of the tokens its mask marks."""


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
    """Answers whose every chunk is the best of several by a reward.

    Args:
        policy: writes the candidates.
        score: of the tokens of one chunk, given all that stands before them.
        prompts: token ids.
        options: temperature, length limit and the like.
        candidates: n; 1 is plain sampling.
        chunk: tokens between choices; None: whole answers, best-of-n.
        stop_tokens: ids that end an answer.
        pad_token: fills the right of shorter rows.
        num_samples: answers a prompt, independent of each other.
        seed: of the random streams.
        tokenizer: reads answers for the stop strings of ``options``.
        progress: called with the number of answers finished.

    Returns:
        rollouts on the CPU as :func:`~dpr_lightning.rollouts.sample` gives them; ``logprob`` is the policy's, and not
        that of the selection, which has no density.

    Raises:
        InputError: fewer than one candidate, sample or token a chunk.
    """
    if candidates < 1 or num_samples < 1 or (chunk is not None and chunk < 1):
        raise InputError(
            f"`candidates`, `chunk` and samples count from 1; found {candidates}, {chunk} and {num_samples}."
        )
    size = options.max_new_tokens if chunk is None else min(chunk, options.max_new_tokens)
    rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
    starts = [len(row) for row in rows]
    logprobs: list[list[float]] = [[] for _ in rows]
    open_rows, terminated = list(range(len(rows))), [False] * len(rows)
    for place in range(0, options.max_new_tokens, size):
        written = sample(
            policy,
            [rows[row] for row in open_rows],
            replace(options, max_new_tokens=min(size, options.max_new_tokens - place)),
            stop_tokens=stop_tokens,
            pad_token=pad_token,
            num_samples=candidates,
            seed=seed + 7_368_787 * place,
            prompt_ids=open_rows,
            tokenizer=tokenizer,
            begun=[len(rows[row]) - starts[row] for row in open_rows],
        )
        best = score(written).reshape(len(open_rows), candidates).argmax(1).tolist()
        chosen = [place * candidates + pick for place, pick in enumerate(best)]
        for row, pick in zip(open_rows, chosen, strict=True):
            rows[row] += written.tokens[pick][written.mask[pick]].tolist()
            logprobs[row] += written.logprob[pick][: int(written.mask[pick].sum())].tolist()
            terminated[row] = bool(written.terminated[pick])
        if progress is not None:
            progress(sum(terminated[row] for row in open_rows))
        open_rows = [row for row in open_rows if not terminated[row]]
        if not open_rows:
            break
    if progress is not None:
        progress(len(open_rows))
    written_by = [slice(start, start + num_samples) for start in range(0, len(rows), num_samples)]
    own = [row[start:] for row, start in zip(rows, starts, strict=True)]
    answers = [Answers.of(own[part], logprobs[part], terminated[part]) for part in written_by]
    return joined(prompts, answers, range(len(prompts)), pad_token)
