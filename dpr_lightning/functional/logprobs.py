"""Log-probabilities of tokens, and functions of whole distributions over the vocabulary. All in nats."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from dpr_lightning.functional._checks import (
    at_least_float32,
    expect_dimensions,
    expect_mask,
    expect_positive,
    expect_shape,
)

# Entries of a [rows, V] block: the float32 workspace of a call is 16 MiB, whatever B, T and V are.
_BLOCK = 1 << 22


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(z)[token] and logsumexp(z), z = logits/τ, of [N, V] rows, with a workspace of a few rows only.

    PyTorch's autograd saves a float32 copy of all logits and, in the backward, needs three more of the same size; it
    also turns a zero gradient at a row with NaN into NaN. Here a row without incoming gradient gets exactly 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        result = at_least_float32(logits.new_empty(0)).dtype
        logprob = torch.empty(logits.shape[0], dtype=result, device=logits.device)
        normaliser = torch.empty_like(logprob)
        step = max(1, _BLOCK // max(1, logits.shape[1]))
        for start in range(0, logits.shape[0], step):
            block = logits[start : start + step].to(result)
            if temperature != 1.0:
                block = block / temperature
            highest = block.amax(dim=-1, keepdim=True)
            shifted = block.gather(-1, tokens[start : start + step, None]) - highest
            log_sum = (block - highest).exp_().sum(dim=-1, keepdim=True).log_()
            logprob[start : start + step] = (shifted - log_sum).squeeze(-1)
            normaliser[start : start + step] = (highest + log_sum).squeeze(-1)
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.temperature = temperature
        return logprob, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_grad: Tensor, normaliser_grad: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        step = max(1, _BLOCK // max(1, logits.shape[1]))
        for start in range(0, logits.shape[0], step):
            rows = slice(start, start + step)
            block = logits[rows].to(normaliser.dtype)
            if ctx.temperature != 1.0:
                block = block / ctx.temperature
            # d logprob/dz = onehot − softmax and d logsumexp/dz = softmax
            block = (block - normaliser[rows, None]).exp_()
            block *= (normaliser_grad[rows] - logprob_grad[rows])[:, None]
            block.scatter_add_(-1, tokens[rows, None], logprob_grad[rows, None])
            silent = (logprob_grad[rows] == 0) & (normaliser_grad[rows] == 0)
            gradient[rows] = block.masked_fill_(silent[:, None], 0.0) / ctx.temperature
        return gradient, None, None


_log_softmax_at: Callable[..., tuple[Tensor, Tensor]] = _LogSoftmaxAt.apply


def token_logprobs_and_normaliser(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], temperature: float = 1.0
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Log-probability of each token and the logsumexp that normalises it, both of logits/τ.

        log π(a_t|s_t) = z_t[a_t] − logsumexp(z_t),   z = logits/τ

    With logits read as soft Q-values, V(s) = τ·logsumexp(Q/τ) is τ times the second result.

    Args:
        logits: ``logits[b, t]`` predicts ``tokens[b, t]``.
        tokens: indices in [0, V), at padded positions too.
        temperature: τ > 0.

    Returns:
        Two [B, T] tensors in nats; float32 for half-precision logits, else of the logits' type.

    Raises:
        ValueError: shapes that do not fit, a token outside the vocabulary (checked on the CPU), τ ≤ 0.
    """
    expect_dimensions("logits", logits, "B T V")
    expect_shape("tokens", tokens, logits.shape[:2], "logits without the vocabulary")
    expect_positive("temperature", temperature)
    if tokens.device.type == "cpu" and tokens.numel() and not isinstance(tokens, FakeTensor):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= logits.shape[2]:
            raise ValueError(
                f"tokens range from {low} to {high}, but the logits cover a vocabulary of {logits.shape[2]}. "
                "Padding needs an index inside the vocabulary as well (not -100): the mask says what counts."
            )
    batch, width, vocabulary = logits.shape
    logprob, normaliser = _log_softmax_at(
        logits.reshape(batch * width, vocabulary), tokens.reshape(-1).long(), temperature
    )
    return logprob.view(batch, width), normaliser.view(batch, width)


def token_logprobs(logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Log-probability of each token:  log π(a_t|s_t) = logits_t[a_t] − logsumexp(logits_t).

    Args:
        logits: ``logits[b, t]`` predicts ``tokens[b, t]``.
        tokens: indices in [0, V).

    Returns:
        [B, T] in nats. Half-precision logits are converted to float32, block by block, and give float32.

    Raises:
        ValueError: shapes that do not fit, or a token outside the vocabulary (checked on the CPU).
    """
    return token_logprobs_and_normaliser(logits, tokens)[0]


def entropy(logprobs: Float[Tensor, "*batch V"], mask: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, "*batch"]:
    """Entropy of each distribution:  H = −Σ_a π(a)·log π(a), nats. Actions of probability 0 add 0.

    Args:
        logprobs: normalised log-probabilities.
        mask: positions outside it are 0 and pass no gradient; None: all positions count.

    Raises:
        ValueError: the mask does not have the shape of ``logprobs`` without V.
    """
    logprobs = _inside(at_least_float32(logprobs), mask)
    impossible = logprobs == -torch.inf
    possible = logprobs.masked_fill(impossible, 0.0)
    total = -(possible.exp() * possible).sum(dim=-1)
    return total if mask is None else total.masked_fill(mask == 0, 0.0)


def kl_divergence(
    logp: Float[Tensor, "*batch V"], logq: Float[Tensor, "*batch V"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Exact divergence at each position:  KL(p‖q) = Σ_a p(a)·(log p(a) − log q(a)), nats.

    Actions with p = 0 add 0, whatever q is; p > 0 where q = 0 gives infinity.

    Args:
        logp: normalised log-probabilities of p, which the expectation is under.
        logq: those of q.
        mask: positions outside it are 0 and pass no gradient; None: all positions count.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    expect_shape("logq", logq, logp.shape, "that of logp")
    logp, logq = _inside(at_least_float32(logp), mask), _inside(at_least_float32(logq), mask)
    impossible = logp == -torch.inf
    possible, other = logp.masked_fill(impossible, 0.0), logq.masked_fill(impossible, 0.0)
    total = (possible.exp() * (possible - other)).sum(dim=-1)
    return total if mask is None else total.masked_fill(mask == 0, 0.0)


def _inside(logprobs: Tensor, mask: Tensor | None) -> Tensor:
    """The distributions with 0 outside the mask, so that NaN there has no effect on values or gradients."""
    if mask is None:
        return logprobs
    mask = expect_mask(mask, logprobs.shape[:-1], "the log-probabilities without the vocabulary")
    return logprobs.masked_fill(~mask[..., None], 0.0)
