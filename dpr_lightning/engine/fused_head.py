"""The output head and a loss of its log-probabilities in one pass, block by block, without all logits at once.

SFT of 1,984 tokens with one layer takes 0.77 of the time and 0.42 of the memory that it takes without this
(`python -m benchmarks.ablation`).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from dpr_lightning.functional._checks import at_least_float32, expect_dimensions, expect_shape


class Part(NamedTuple):
    """Some of the N tokens: ``rows``, which of them; ``best`` [n], max_b log π(b|s) in nats, without gradient."""

    rows: slice
    best: Tensor


TokenLoss = Callable[[Tensor, Part], Tensor]
"""From the log-probabilities of some tokens [n], and which of the N they are, to the sum of their losses."""
ActionValues = Callable[[Tensor, slice], Tensor]
"""From log π of *every* token in some states, [n, V], and which of the N they are, to the value of each, [n, V]."""
# Logits of a block: 64 MiB of float32 on a CPU, whose caches favour small blocks; 512 MiB on a GPU, which a small block
# would leave mostly idle.
_BLOCK, _BLOCK_ON_GPU = 1 << 24, 1 << 27
# Logits whose elements are processed together within a block: what fits into a CPU's caches.
_STRIP = 1 << 19
# Values of every token need further blocks in addition to the policy's, all of which are smaller then.
_WITH_VALUES = 4


class HeadLoss(NamedTuple):
    """``loss`` [], which carries the gradient; ``logprob`` and ``entropy`` [N] in nats, which carry none."""

    loss: Tensor
    logprob: Tensor
    entropy: Tensor


def head_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, " N"],
    token_loss: TokenLoss,
    action_values: ActionValues | None = None,
) -> HeadLoss:
    """Σ f(log π(a_n|s_n)), with log π(a|s) = z[a] − logsumexp(z) and z = W·h, for a loss f of each token.

    With values q of every token, minus their expectation: − Σ_n Σ_a π(a|s_n)·q(s_n, a).

    The gradient is computed in the forward pass, block by block, from the same softmax:

        ∂L/∂z = f'(log π(a))·(onehot(a) − softmax(z)) − π ⊙ (q − Σ_a π(a)·q(a)),
        ∂L/∂h = Wᵀ·∂L/∂z,   ∂L/∂W = Σ ∂L/∂z·hᵀ

    so the backward pass computes no logits again (6·V·D operations a token instead of 8) and saves none. In addition to
    the gradients, which have the types of their tensors, a call takes some blocks of logits, for any number of tokens.
    Under autocast the products have its type.

    Args:
        hidden: states before the head, of scored tokens alone.
        weight: of the head.
        tokens: ``tokens[n]`` was sampled in state n.
        token_loss: f, called with log-probabilities [n] and which of the N tokens they are. It may also use the
            log-probability without gradient, as clipped and probability-weighted losses do, and that of the most
            probable token.
        action_values: q, through which no gradient flows. It may include −β·log π(a), as a penalty of the divergence
            does: the gradient of that has mean 0 under π. Tokens of probability 0 add 0 for any value.

    Returns:
        float32 for half-precision states, else of their type. A token whose loss has no gradient adds exactly 0 to all
        gradients, even where its logits are not finite; with values of every token, no token is such a one.

    Raises:
        ValueError: shapes that do not fit.
    Source: ours; the values' term is that of :func:`all_actions_loss`.
    """
    _check(hidden, weight, tokens)
    rows = rows_at_a_time(len(weight), weight.device, 1 if action_values is None else _WITH_VALUES)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        compute: Any = _HeadLoss.apply
        return HeadLoss(*compute(hidden, weight, tokens.long(), token_loss, action_values, rows, dtype))


def rows_at_a_time(vocabulary: int, device: torch.device, smaller: int = 1) -> int:
    """States of a block of logits; blocks have the device's size divided by ``smaller``."""
    block = _BLOCK_ON_GPU if device.type == "cuda" else _BLOCK
    return max(1, block // smaller // max(1, vocabulary))


def head_logprobs(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], tokens: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """log π(a_n|s_n) = z[a_n] − logsumexp(z), z = W·h, nats, without gradient and without the logits of all states.

    Args:
        hidden: states before the head, of scored tokens alone.
        weight: of the head.
        tokens: ``tokens[n]`` was sampled in state n.

    Returns:
        float32 for half-precision states, else of their type.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(hidden, weight, tokens)
    rows = rows_at_a_time(len(weight), weight.device)
    result = torch.empty(len(tokens), dtype=at_least_float32(hidden[:0]).dtype, device=hidden.device)
    with torch.no_grad():
        for start in range(0, len(tokens), rows):
            product = linear(hidden[start : start + rows], weight)
            for within in _strips(product):
                part = slice(start + within.start, start + within.stop)
                logits = product[within].to(result.dtype)
                actions = logits.gather(-1, tokens[part, None].long()).squeeze(-1)
                highest = logits.amax(-1, keepdim=True)
                result[part] = actions - highest.squeeze(-1) - logits.sub_(highest).exp_().sum(-1).log_()
    return result


def _strips(logits: Tensor) -> Iterator[slice]:
    """Slices of rows whose logits fit into a CPU's caches; one slice of all on a GPU."""
    rows = len(logits) if logits.is_cuda else max(1, _STRIP // max(1, logits.shape[-1]))
    for start in range(0, len(logits), rows):
        yield slice(start, min(start + rows, len(logits)))


def _check(hidden: Tensor, weight: Tensor, tokens: Tensor) -> None:
    expect_dimensions("hidden", hidden, "N D")
    expect_dimensions("weight", weight, "V D")
    expect_shape("weight", weight, (weight.shape[0], hidden.shape[1]), "the width of hidden")
    expect_shape("tokens", tokens, hidden.shape[:1], "the rows of hidden")


class _HeadLoss(torch.autograd.Function):
    """See :func:`head_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        token_loss: TokenLoss,
        action_values: ActionValues | None,
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        matrix = weight.to(dtype)
        logprob = torch.empty(len(tokens), dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprob)
        loss = logprob.new_zeros(())
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        for start in range(0, len(tokens), rows):
            block = slice(start, start + rows)
            states = hidden[block].to(dtype)
            product = states @ matrix.T
            silent = torch.zeros(len(product), 1, dtype=torch.bool, device=hidden.device)
            # Values of every token are themselves products, which are fastest with many rows.
            for within in _strips(product) if action_values is None else [slice(0, len(product))]:
                part = slice(start + within.start, start + within.stop)
                strip = _of_strip(product[within], tokens[part], part, token_loss, action_values)
                loss += strip.loss
                logprob[part], entropy[part] = strip.logprob, strip.entropy
                if wants_hidden or wants_weight:
                    silent[within] = strip.silent
                    product[within] = strip.change
            if hidden_grad is not None:
                hidden_grad[block] = product @ matrix
            if weight_grad is not None:
                heard = states.masked_fill(silent, 0.0)
                if weight_grad.dtype == product.dtype:
                    torch.addmm(weight_grad, product.T, heard, out=weight_grad)
                else:
                    weight_grad += product.T @ heard
        ctx.gradients = (hidden_grad, weight_grad)
        ctx.mark_non_differentiable(logprob, entropy)
        return loss, logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.gradients
        scale = loss_grad.to(torch.float64)
        for gradient in (hidden_grad, weight_grad):
            if gradient is not None:
                gradient.mul_(scale.to(gradient.dtype))
        ctx.gradients = (None, None)
        return hidden_grad, weight_grad, None, None, None, None, None


class _Strip(NamedTuple):
    """Results of some rows of logits [n, V]: ``loss`` [], ``logprob`` and ``entropy`` [n], ∂L/∂z as ``change`` [n, V],
    and ``silent`` [n, 1], True for rows whose loss has no gradient.
    """

    loss: Tensor
    logprob: Tensor
    entropy: Tensor
    change: Tensor
    silent: Tensor


def _of_strip(
    product: Tensor,
    tokens: Tensor,
    part: slice,
    token_loss: TokenLoss,
    action_values: ActionValues | None,
) -> _Strip:
    """Results of logits ``product``, which may be overwritten."""
    logits = product.to(torch.promote_types(product.dtype, torch.float32))
    actions = tokens[:, None]
    highest = logits.amax(-1, keepdim=True)
    probability = (logits - highest).exp_()
    total = probability.sum(-1, keepdim=True)
    probability /= total
    normaliser = total.log_().add_(highest)
    logprob = (logits.gather(-1, actions) - normaliser).squeeze(-1)
    loss = logits.new_zeros(())
    advantage = None
    if action_values is not None:
        values = action_values(logits - normaliser, part).masked_fill(probability == 0, 0.0)
        mean = (values * probability).sum(-1, keepdim=True)
        loss -= mean.sum()
        advantage = values.sub_(mean)
    # An impossible action adds nothing: 0·(−∞) would be NaN.
    expected = logits.clamp_(min=torch.finfo(logits.dtype).min).mul_(probability).sum(-1)
    entropy = normaliser.squeeze(-1) - expected
    value, slope = _loss_and_slope(logprob, Part(part, (highest - normaliser).squeeze(-1)), token_loss)
    loss += value
    if advantage is None:
        silent = (slope == 0)[:, None]
        change = probability.mul_(-slope[:, None])
    else:
        silent = torch.zeros_like(slope, dtype=torch.bool)[:, None]
        change = probability.mul_(-(advantage.add_(slope[:, None])))
    change.scatter_add_(-1, actions, slope[:, None])
    return _Strip(loss, logprob, entropy, change.masked_fill_(silent, 0.0), silent)


def _loss_and_slope(logprob: Tensor, part: Part, token_loss: TokenLoss) -> tuple[Tensor, Tensor]:
    """The loss [] of tokens, and its derivative by each of their log-probabilities [n]."""
    with torch.enable_grad():
        leaf = logprob.detach().requires_grad_()
        value = token_loss(leaf, part)
    slope = torch.autograd.grad(value, leaf)[0] if value.requires_grad else torch.zeros_like(leaf)
    return value.detach(), slope
