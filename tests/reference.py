"""The slow, obvious twins of dpr_lightning.functional: loops over rows and positions, written from the equations.

They share no code with the package. Tensors stay tensors, so that gradients can be compared as well as values.
"""

import math

import torch
from torch import Tensor


def zero_like(tensor: Tensor) -> Tensor:
    """A zero of the tensor's type that sums can start from."""
    return torch.zeros((), dtype=tensor.dtype)


def acted(mask: Tensor, row: int) -> list[int]:
    """The positions a row acted at, in order."""
    return [t for t in range(mask.shape[1]) if bool(mask[row, t])]


def ragged_mask(batch: int, width: int, seed: int = 0) -> Tensor:
    """Rows of random lengths with gaps; row 1 is empty, row 0 full."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, width, dtype=torch.bool)
    for row in range(batch):
        length = int(torch.randint(1, width + 1, (), generator=generator))
        mask[row, :length] = torch.rand(length, generator=generator) < 0.7
    mask[0] = True
    if batch > 1:
        mask[1] = False
    return mask


# --- masks ------------------------------------------------------------------------------------------------------------
def action_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows = [acted(mask, row) for row in range(mask.shape[0])]
    width = max((len(row) for row in rows), default=0)
    position = torch.ones(len(rows), width, dtype=torch.int64)
    action_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        for t, column in enumerate(row):
            position[b, t], action_mask[b, t] = column, True
    return position, action_mask


def masked_sum(value: Tensor, mask: Tensor) -> Tensor:
    total = zero_like(value)
    for b in range(value.shape[0]):
        for t in acted(mask, b):
            total = total + value[b, t]
    return total


def next_action(mask: Tensor) -> Tensor:
    result = torch.full(mask.shape, mask.shape[1], dtype=torch.int64)
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            later = [k for k in acted(mask, b) if k > t]
            if later:
                result[b, t] = later[0]
    return result


# --- log-probabilities ------------------------------------------------------------------------------------------------
def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    rows = []
    for b in range(tokens.shape[0]):
        row = []
        for t in range(tokens.shape[1]):
            total = sum(math.exp(float(logit)) for logit in logits[b, t])
            row.append(float(logits[b, t, tokens[b, t]]) - math.log(total))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def entropy(logprobs: Tensor) -> Tensor:
    result = torch.zeros(logprobs.shape[:-1], dtype=logprobs.dtype)
    for index in torch.cartesian_prod(*(torch.arange(length) for length in result.shape)):
        distribution = logprobs[tuple(index)].tolist()
        result[tuple(index)] = -sum(math.exp(x) * x for x in distribution if x > -math.inf)
    return result


def kl_divergence(logp: Tensor, logq: Tensor) -> Tensor:
    result = torch.zeros(logp.shape[:-1], dtype=logp.dtype)
    for index in torch.cartesian_prod(*(torch.arange(length) for length in result.shape)):
        pairs = zip(logp[tuple(index)].tolist(), logq[tuple(index)].tolist(), strict=True)
        result[tuple(index)] = sum(math.exp(p) * (p - q) for p, q in pairs if p > -math.inf)
    return result


# --- returns ----------------------------------------------------------------------------------------------------------
def returns_to_go(reward: Tensor, mask: Tensor, discount: float = 1.0) -> Tensor:
    result = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        for t in range(reward.shape[1]):
            result[b, t] = sum(
                (discount ** (k - t) * reward[b, k] for k in acted(mask, b) if k >= t), start=zero_like(reward)
            )
    return result


def following_state(mask: Tensor, terminated: Tensor, row: int, t: int) -> int | None:
    """Position of the state after the action at t: None if terminal, else the next action or, cut, the next place."""
    later = [k for k in acted(mask, row) if k > t]
    if later:
        return later[0]
    return None if bool(terminated[row]) else t + 1


def shape_reward(reward: Tensor, potential: Tensor, mask: Tensor, terminated: Tensor, discount: float) -> Tensor:
    result = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        for t in acted(mask, b):
            state = following_state(mask, terminated, b, t)
            after = 0.0 if state is None else potential[b, state]
            result[b, t] = reward[b, t] + discount * after - potential[b, t]
    return result


# --- rewards ----------------------------------------------------------------------------------------------------------
def baseline_relative_reward(
    policy_logprob: Tensor, reference_logprobs: Tensor, reduction: str = "mean_logprob", coefficient: float = 1.0
) -> Tensor:
    result = torch.zeros_like(policy_logprob)
    count = reference_logprobs.shape[0]
    for index in torch.cartesian_prod(*(torch.arange(length) for length in policy_logprob.shape)):
        policy = float(policy_logprob[tuple(index)])
        references = [float(reference_logprobs[(r, *index)]) for r in range(count)]
        ratios = [policy - reference for reference in references]
        mean = sum(ratios) / count
        result[tuple(index)] = {
            "mean_logprob": mean,
            "mean_prob": policy - math.log(sum(math.exp(reference) for reference in references) / count),
            "min": min(ratios),
            "mean_minus_std": mean - coefficient * math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / count),
        }[reduction]
    return result


def dense_reward_form(
    form: str, policy: float, baseline: float, divergence: float, limit: float, interpolation: float
) -> float:
    """One token at a time."""
    ratio = policy - baseline
    return {
        "log_ratio": ratio,
        "clipped": max(-limit, min(limit, ratio)),
        "interpolated": policy - interpolation * baseline,
        "centred": ratio - divergence,
        "one_sided": min(ratio, 0.0),
        "one_sided_centred": min(ratio - divergence, 0.0),
        "log_policy": policy,
    }[form]


def length_normalise(reward: Tensor, mask: Tensor) -> Tensor:
    result = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        for t in acted(mask, b):
            result[b, t] = reward[b, t] / len(acted(mask, b))
    return result


def zscore_by_position(reward: Tensor, mask: Tensor) -> Tensor:
    result = torch.zeros_like(reward)
    for t in range(reward.shape[1]):
        rows = [b for b in range(reward.shape[0]) if mask[b, t]]
        values = [float(reward[b, t]) for b in rows]
        if len(set(values)) > 1:
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
            for b in rows:
                result[b, t] = (float(reward[b, t]) - mean) / deviation
    return result


# --- baselines --------------------------------------------------------------------------------------------------------
def leave_one_out_baseline(returns: Tensor, mask: Tensor, group_size: int) -> Tensor:
    result = torch.zeros_like(returns)
    for b in range(returns.shape[0]):
        first = b - b % group_size
        for t in range(returns.shape[1]):
            rest = [float(returns[j, t]) for j in range(first, first + group_size) if j != b and mask[j, t]]
            result[b, t] = sum(rest) / len(rest) if rest else 0.0
    return result


def batch_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    values = [float(returns[b, t]) for b in range(returns.shape[0]) for t in acted(mask, b)]
    return torch.full_like(returns, sum(values) / len(values) if values else 0.0)


def position_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    result = torch.zeros_like(returns)
    for t in range(returns.shape[1]):
        values = [float(returns[b, t]) for b in range(returns.shape[0]) if mask[b, t]]
        result[:, t] = sum(values) / len(values) if values else 0.0
    return result


def response_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    result = torch.zeros_like(returns)
    for b in range(returns.shape[0]):
        values = [float(returns[b, t]) for t in acted(mask, b)]
        result[b] = sum(values) / len(values) if values else 0.0
    return result


def whiten(advantage: Tensor, mask: Tensor) -> Tensor:
    values = [float(advantage[b, t]) for b in range(advantage.shape[0]) for t in acted(mask, b)]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    result = torch.zeros_like(advantage)
    for b in range(advantage.shape[0]):
        for t in acted(mask, b):
            result[b, t] = (float(advantage[b, t]) - mean) / deviation
    return result


# --- losses -----------------------------------------------------------------------------------------------------------
def sft_loss(logprob: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    return -masked_sum(logprob, mask) / num_tokens


def dft_loss(logprob: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    return -masked_sum(logprob.detach().exp() * logprob, mask) / num_tokens


def reinforce_loss(logprob: Tensor, advantage: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    return -masked_sum(logprob * advantage.detach(), mask) / num_tokens


def all_actions_loss(logprobs: Tensor, reward: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    total = zero_like(logprobs)
    for b in range(logprobs.shape[0]):
        for t in acted(mask, b):
            for a in range(logprobs.shape[2]):
                if float(logprobs[b, t, a].detach()) > -math.inf:
                    total = total + logprobs[b, t, a].exp() * reward[b, t, a]
    return -total / num_tokens


def clipped_surrogate_loss(
    logprob: Tensor, behaviour_logprob: Tensor, advantage: Tensor, mask: Tensor, num_tokens: float, clip_range: float
) -> tuple[Tensor, float]:
    total, clipped, tokens = zero_like(logprob), 0, 0
    for b in range(logprob.shape[0]):
        for t in acted(mask, b):
            ratio = (logprob[b, t] - behaviour_logprob[b, t]).exp()
            weight = float(advantage[b, t])
            tokens += 1
            if (weight > 0 and ratio > 1 + clip_range) or (weight < 0 and ratio < 1 - clip_range):
                clipped += 1
                total = total + (1 + clip_range if weight > 0 else 1 - clip_range) * weight
            else:
                total = total + ratio * weight
    return -total / num_tokens, clipped / max(tokens, 1)


def bound_unlikelihood(advantage: Tensor, logprob: Tensor, floor_probability: float) -> Tensor:
    result = advantage.clone()
    for index in torch.cartesian_prod(*(torch.arange(length) for length in advantage.shape)):
        if advantage[tuple(index)] < 0:
            result[tuple(index)] *= min(1.0, math.exp(float(logprob[tuple(index)])) / floor_probability)
    return result


def iq_learn_loss(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor,
    terminated: Tensor,
    discount: float = 1.0,
    value_form: str = "value_expert",
    chi2_alpha: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """With every V' written out; one that lies beyond the logits is a number that must cancel."""
    batch, states = tokens.shape[0], logits.shape[1]
    linear, squares, count = zero_like(logits), zero_like(logits), 0
    for b in range(batch):
        indices = acted(mask, b)
        rewards = []
        for index, t in enumerate(indices):
            value = temperature * torch.logsumexp(logits[b, t] / temperature, dim=0)
            state = following_state(mask, terminated, b, t)
            beyond = state is not None and state >= states
            if state is None:
                after = zero_like(logits)
            elif beyond:
                after = torch.tensor(17.0, dtype=logits.dtype)
            else:
                after = temperature * torch.logsumexp(logits[b, state] / temperature, dim=0)
            reward = logits[b, t, tokens[b, t]] - discount * after
            rewards.append(reward)
            count += 1
            if not beyond:
                squares = squares + reward**2
            if value_form == "value_expert":
                linear = linear - reward + (value - discount * after)
            elif index == 0:
                linear = linear + value  # V_0
        if value_form == "v0":
            linear = linear - sum((discount**i * reward for i, reward in enumerate(rewards)), start=zero_like(logits))
            if indices and not bool(terminated[b]):
                linear = linear - discount ** len(indices) * after  # the cut return goes on with V_n
    total = linear if chi2_alpha is None else linear + squares / (4 * chi2_alpha)
    return total / (max(count, 1) if value_form == "value_expert" else batch)
