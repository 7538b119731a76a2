"""The annotations hold: axes agree between arguments and results, and float64 in gives float64 out."""

import inspect
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from beartype import beartype

from dpr_lightning import functional as F
from dpr_lightning.engine.attention_blocks import block_attention, rotate, signed_sine
from dpr_lightning.engine.fused_head import head_logprobs, head_loss

B, T, V, R = 4, 3, 5, 2


def values(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False], [True, True, False]])
SEQUENCE_MASK = torch.cat([torch.zeros(B, 1, dtype=torch.bool), MASK], dim=1)
TOKENS = torch.ones(B, T, dtype=torch.int64)
KEYS_SEEN = torch.ones(B, 1, T, T, dtype=torch.bool).tril()
TERMINATED = torch.tensor([True, False, True, False])

EXAMPLES: dict[str, Callable[[], tuple]] = {
    "action_positions": lambda: (SEQUENCE_MASK,),
    "all_actions_loss": lambda: (values(B, T, V), values(B, T, V), MASK, 7.0),
    "baseline_relative_reward": lambda: (values(B, T), values(R, B, T)),
    "batch_baseline": lambda: (values(B, T), MASK),
    "block_attention": lambda: (values(B, 4, T, V), values(B, 2, T, V), values(B, 2, T, V), 0.5, KEYS_SEEN),
    "bound_unlikelihood": lambda: (values(B, T), values(B, T), 0.1),
    "check_finite_rewards": lambda: (values(B, T), MASK),
    "clip_reward": lambda: (values(B, T), 1.0),
    "clipped_surrogate_loss": lambda: (values(B, T), values(B, T), values(B, T), MASK, 7.0, 0.2),
    "dense_reward_form": lambda: ("centred", values(B, T, V), values(B, T, V), values(B, T, 1)),
    "dft_loss": lambda: (values(B, T), MASK, 7.0),
    "entropy": lambda: (values(B, T, V), MASK),
    "gce_loss": lambda: (values(B, T), MASK, 7.0),
    "head_logprobs": lambda: (values(T, V), values(V, V), TOKENS[0]),
    "head_loss": lambda: (values(T, V), values(V, V), TOKENS[0], lambda logprob, _: -logprob.sum()),
    "iq_learn_loss": lambda: (values(B, T, V), TOKENS, MASK, TERMINATED),
    "is_trimmed": lambda: (values(B, T), values(B, T), 3.0, 0.5),
    "kl_divergence": lambda: (values(B, T, V), values(B, T, V), MASK),
    "leave_one_out_baseline": lambda: (values(B, T), MASK, 2),
    "length_normalise": lambda: (values(B, T), MASK),
    "masked_mean": lambda: (values(B, T), MASK),
    "masked_sum": lambda: (values(B, T), MASK, 1),
    "mixed_dense_reward": lambda: ({"one_sided": 1.0, "log_policy": 0.5}, values(B, T), values(B, T)),
    "next_action": lambda: (MASK,),
    "position_baseline": lambda: (values(B, T), MASK),
    "reference_baseline": lambda: (values(R, B, T), "mean_minus_std"),
    "relative_reward_loss": lambda: (values(B, T), values(B, T), 0.5),
    "reinforce_loss": lambda: (values(B, T), values(B, T), MASK, torch.tensor(7.0)),
    "response_baseline": lambda: (values(B, T), MASK),
    "reverse_kl_loss": lambda: (values(B, T), values(B, T), MASK),
    "returns_to_go": lambda: (values(B, T), MASK, 0.9),
    "rotate": lambda: (values(B, T, R, 4), values(B, T, 4), values(B, T, 4)),
    "self_play_loss": lambda: ("spin", values(B), values(B)),
    "sft_loss": lambda: (values(B, T), MASK, 7.0),
    "shape_reward": lambda: (values(B, T), values(B, T + 1), MASK, TERMINATED),
    "token_logprobs": lambda: (values(B, T, V), TOKENS),
    "token_logprobs_and_normaliser": lambda: (values(B, T, V), TOKENS),
    "truncated_importance": lambda: (values(B, T), values(B, T), MASK, 2.0),
    "signed_sine": lambda: (values(B, T, 4),),
    "whiten": lambda: (values(B, T), MASK),
    "win_rates": lambda: (values(B, T),),
    "zscore_by_position": lambda: (values(B, T), MASK),
}


OF_TENSORS = (block_attention, head_logprobs, head_loss, rotate, signed_sine)
"""Functions of engine/ that are given tensors, and no model."""
INNER = {"block_attention", "rotate"}
"""Those that only attention in engine/ calls, with tensors that it prepares itself."""
FUNCTIONS = {function.__name__: function for function in OF_TENSORS}
FUNCTIONS |= {name: getattr(F, name) for name in F.__all__ if inspect.isfunction(getattr(F, name))}


def flatten(result):
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in flatten(part)]
    return [] if result is None else [result]


def test_every_public_function_has_an_example():
    assert set(FUNCTIONS) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_annotations_hold(name):
    function = jaxtyping.jaxtyped(typechecker=beartype)(FUNCTIONS[name])
    function(*EXAMPLES[name]())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EXAMPLES)
def test_floating_types_are_kept(name, dtype):
    arguments = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in EXAMPLES[name]()]
    for tensor in flatten(FUNCTIONS[name](*arguments)):
        assert not tensor.is_floating_point() or tensor.dtype == dtype


def cut(tensor, axis):
    return tensor.narrow(axis, 0, tensor.shape[axis] - 1)


CUT = [
    (name, index, axis)
    for name, example in EXAMPLES.items()
    if name not in INNER
    for index, argument in enumerate(example())
    if isinstance(argument, torch.Tensor)
    for axis in range(min(argument.dim(), 2))
    # functions of one tensor cannot be given two that disagree
    if sum(isinstance(other, torch.Tensor) and other.dim() > 0 for other in example()) > 1
    # a shorter sequence may still hold every position; one reference or one token of the vocabulary fewer is no mistake
    if (name, index, axis)
    not in {
        ("baseline_relative_reward", 1, 0),
        ("head_loss", 1, 0),
        ("head_logprobs", 1, 0),
    }
]


@pytest.mark.parametrize(("name", "index", "axis"), CUT)
def test_arguments_that_do_not_fit_are_refused_with_what_was_found(name, index, axis):
    arguments = list(EXAMPLES[name]())
    arguments[index] = cut(arguments[index], axis)
    with pytest.raises(ValueError, match=r"has shape \[|does not broadcast|logits cover"):
        FUNCTIONS[name](*arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_masks_of_zero_and_one_are_taken_as_well(dtype):
    for name in ("returns_to_go", "leave_one_out_baseline", "entropy", "iq_learn_loss"):
        arguments = EXAMPLES[name]()
        typed = [x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.bool else x for x in arguments]
        assert torch.equal(FUNCTIONS[name](*typed), FUNCTIONS[name](*arguments))
