"""What is written in C++ for learning, against autograd in float64, on every width of vectors that this CPU has."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from dpr_lightning.engine import kernels

pytestmark = pytest.mark.usefixtures("vectors")
ALLOWED = {torch.float32: 5e-6, torch.bfloat16: 1e-2}
DTYPES = list(ALLOWED)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def near(found: Tensor, exact: Tensor, allowed: float) -> None:
    torch.testing.assert_close(found.double(), exact.detach(), atol=allowed, rtol=allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 15, 64, 1000, 20_001])
def test_logits_are_weighed(columns: int, dtype: torch.dtype) -> None:
    logits = (3 * random(7, columns)).to(dtype)
    tokens = torch.randint(columns, (7,), generator=torch.Generator().manual_seed(0))
    slope = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 0.0, -1.0])
    wide = logits.double().requires_grad_()
    logprobs = wide.log_softmax(-1)
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
    gradient = torch.autograd.grad((slope * chosen).sum(), wide)[0]
    weighed = kernels.weigh(logits, tokens)
    near(weighed.logprob, chosen, 5e-6)
    near(weighed.entropy, -(logprobs.exp() * logprobs).sum(-1), 5e-6)
    kernels.change_(logits, tokens, weighed, slope)
    near(logits, gradient, ALLOWED[dtype])
    assert (logits[[2, 5]] == 0).all()


def test_impossible_and_strange_logits() -> None:
    logits = random(4, 40)
    logits[0, 3:] = float("-inf")
    logits[1, 2], logits[2, 5] = float("inf"), float("nan")
    tokens = torch.tensor([1, 2, 5, 0])
    wide = logits.double()
    weighed = kernels.weigh(logits, tokens)
    logprobs = wide.log_softmax(-1)
    near(weighed.logprob[[0, 3]], logprobs[[0, 3], [1, 0]], 5e-6)
    near(weighed.entropy[0], -(logprobs[0, :3].exp() * logprobs[0, :3]).sum(), 5e-6)
    assert weighed.logprob[1:3].isnan().all()
    assert kernels.weigh(logits[:1], torch.tensor([5])).logprob.item() == float("-inf")
    kernels.change_(logits, tokens, weighed, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert (logits[1:3] == 0).all()  # whose loss has no gradient
    assert (logits[0, 3:] == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    logits, tokens = random(3, 8), torch.tensor([0, 1, 2])
    for wrong in (torch.tensor([0, 8, 1]), torch.tensor([0, -1, 1])):
        with pytest.raises(IndexError, match="8 logits"):
            kernels.weigh(logits, wrong)
    for few in (tokens[1:], tokens.to("meta")):
        with pytest.raises(ValueError, match="each row"):
            kernels.weigh(logits, few)
    with pytest.raises(ValueError, match="next to each other"):
        kernels.weigh(logits[:, ::2], tokens)
    with pytest.raises(ValueError, match="each row"):
        kernels.change_(logits, tokens, kernels.weigh(logits, tokens), torch.ones(2))
    with pytest.raises(ValueError, match="one shape"):
        kernels.gated_backward_(logits, logits, logits[1:])
    with pytest.raises(ValueError, match="whole vectors"):
        kernels.norm_backward(logits[:, :7], logits[0, :7], random(3, 1), logits[:, :7], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (15,), (3, 17), (2, 5, 64)])
def test_gated_units(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up, gradient = ((3 * random(*shape, seed=seed)).to(dtype) for seed in range(3))
    wide_gate, wide_up = gate.double().requires_grad_(), up.double().requires_grad_()
    exact = silu(wide_gate) * wide_up
    expected = (exact, *torch.autograd.grad(exact, (wide_gate, wide_up), gradient.double()))
    for result, ours in zip(kernels.gated_backward_(gate, up, gradient), expected, strict=True):
        near(result, ours, ALLOWED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 31, 200])
def test_norms(rows: int, dtype: torch.dtype) -> None:
    hidden, gradient = random(rows, 2, 48, dtype=dtype), random(rows, 2, 48, dtype=dtype, seed=1)
    weight = random(48, dtype=dtype)
    wide, wide_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    scale = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    expected = torch.autograd.grad(wide_weight * wide * scale, (wide, wide_weight), gradient.double())
    result, of_weight = kernels.norm_backward(hidden, weight, scale.detach().float(), gradient, True)
    near(result, expected[0], ALLOWED[dtype])
    assert of_weight is not None
    near(of_weight, expected[1], 2e-4)
    spread = torch.stack([weight, 7 * weight], 1)[:, 0]
    assert torch.equal(kernels.norm_backward(hidden, spread, scale.detach().float(), gradient, False)[0], result)
    alone, none = kernels.norm_backward(hidden[:1], weight, scale[:1].detach().float(), gradient[:1], False)
    assert none is None
    assert torch.equal(alone, result[:1])  # to the bit, whatever rows are beside
