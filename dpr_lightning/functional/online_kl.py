"""KL to a reference on the policy's own samples, as losses whose gradient has that of the KL as expectation."""

from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_mask, expect_shape
from dpr_lightning.functional.baselines import leave_one_out_baseline
from dpr_lightning.functional.masking import masked_sum
from dpr_lightning.functional.returns import returns_to_go


def reverse_kl_loss(
    logprob: Float[Tensor, "B T"],
    reference_logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int = 1,
    divergence: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, " B"]:
    """A loss of each response whose expected gradient is ∇KL(π_θ‖π_ref); its value is no estimate of the KL.

        sampled     Σ_t log π(a_t|s_t)·sg[G_t − b_t],           G_t = Σ_{k≥t} log(π/π_ref)(a_k|s_k)
        exact       Σ_t KL_t + log π(a_t|s_t)·sg[F_t − b_t],    F_t = Σ_{k>t} KL_k,  KL_t = KL(π‖π_ref)(s_t)

    No gradient passes through sg; b is the mean of the other responses to the prompt at the same position. The gradient
    of log(π/π_ref) itself, as an estimate of the KL (k1), has expectation 0 and changes nothing; that of k3 has the
    gradient of KL(π_ref‖π).

    Args:
        logprob: log π_θ of the responses' tokens, with its gradient; they were sampled from π_θ as it is.
        reference_logprob: log π_ref of them.
        mask: True where the policy acted.
        group_size: K responses to a prompt, next to each other; 1: no baseline.
        divergence: KL_t of each state with its gradient, for the exact form; None: the sampled one.

    Source: paper: Song et al. 2024 (HyPO), arXiv:2406.01462, the sampled form with whole responses in place of G_t and
        leave-one-out over K. Derived: return to go. Ours: the exact form.
    """
    mask = expect_mask(mask, logprob.shape, "that of logprob")
    expect_shape("reference_logprob", reference_logprob, logprob.shape, "that of logprob")
    logprob = at_least_float32(logprob)
    cost = (logprob - reference_logprob).detach() if divergence is None else divergence.detach()
    cost = cost.masked_fill(~mask, 0.0)
    to_go = returns_to_go(cost, mask)
    if divergence is not None:
        to_go = to_go - cost
    if group_size > 1:
        to_go = to_go - leave_one_out_baseline(to_go, mask, group_size)
    loss = masked_sum(logprob * to_go, mask, dim=1)
    return loss if divergence is None else loss + masked_sum(at_least_float32(divergence), mask, dim=1)
