"""Kernels of one token a row, against float64, with every vector width of this CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.testing._internal.two_tensor import TwoTensor

from dpr_lightning.engine import kernels
from dpr_lightning.engine.attention_blocks import rotate, signed_sine

pytestmark = pytest.mark.usefixtures("vectors")
ALLOWED = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
DTYPES = list(ALLOWED)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def near(result: Tensor, exact: Tensor, allowed: float) -> None:
    torch.testing.assert_close(result.double(), exact, atol=allowed * max(1.0, float(exact.abs().max())), rtol=allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("columns", [1, 16, 47, 48, 130])
@pytest.mark.parametrize("rows", [0, 1, 3, 7, 8, 9, 64])
def test_products(rows: int, columns: int, biased: bool, dtype: torch.dtype) -> None:
    weight, inputs = random(columns, 70, dtype=dtype) / 8, random(rows, 70, dtype=dtype)
    bias = random(columns, dtype=dtype) if biased else None
    other = random(rows, columns, dtype=dtype, seed=1)
    exact = inputs.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    product = kernels.PackedWeight(weight, bias)
    followed: list[tuple[tuple[Any, ...], Tensor]] = [
        ((), exact),
        ((None, "silu"), silu(exact)),
        ((other, "times"), exact * other.double()),
        ((other, "plus"), exact + other.double()),
    ]
    for more, expected in followed:
        result = product(inputs, *more)
        assert result.dtype == dtype
        assert result.shape == (rows, columns)
        if rows:
            near(result, expected, ALLOWED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_to_the_bit_among_others_and_on_more_threads(dtype: torch.dtype) -> None:
    product = kernels.PackedWeight(random(200, 64, dtype=dtype), None)
    inputs = random(37, 64, dtype=dtype)
    whole = product(inputs)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(product(inputs), whole)
    finally:
        torch.set_num_threads(threads)
    for row in (0, 7, 8, 36):
        assert torch.equal(product(inputs[row : row + 1])[0], whole[row])


def test_what_does_not_fit_is_refused() -> None:
    product = kernels.PackedWeight(random(6, 8), None)
    with pytest.raises(ValueError, match="for weights of 8"):
        product(random(2, 9))
    with pytest.raises(ValueError, match="for weights of 8"):
        product(random(2, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="for a product"):
        product(random(2, 8), random(3, 6), "plus")
    with pytest.raises(ValueError, match="no whole pairs"):
        kernels.PackedWeight(random(6, 9, dtype=torch.bfloat16), None)
    with pytest.raises(ValueError, match="A bias"):
        kernels.PackedWeight(random(6, 8), random(5))
    with pytest.raises(ValueError, match="Weights that are TwoTensor"):
        kernels.PackedWeight(TwoTensor(random(6, 8), random(6, 8)), None)
    with pytest.raises(ValueError, match="A norm"):
        kernels.root_mean_square_norm(random(2, 64), random(32), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (300, 64), (2, 3, 32)])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hidden, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    wide = hidden.double()
    exact = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    near(kernels.root_mean_square_norm(hidden, weight, 1e-5), exact, ALLOWED[dtype])
    spread = torch.stack([weight, 7 * weight], 1)[:, 0]
    near(kernels.root_mean_square_norm(hidden, spread, 1e-5), exact, ALLOWED[dtype])


class Case:
    """Inputs of one decoding step of attention, and its cache."""

    def __init__(self, dtype: torch.dtype, group: int, width: int, length: int, rows: int = 6, heads: int = 2) -> None:
        self.rows, self.heads, self.group, self.width, self.length = rows, heads, group, width, length
        self.projected = random(rows, (group + 2) * heads * width, dtype=dtype)
        angle = random(rows, 1, width // 2)
        self.cosine = torch.cat([angle.cos()] * 2, -1).to(dtype)
        self.turned = signed_sine(torch.cat([angle.sin()] * 2, -1)).to(dtype)
        self.cache = tuple(random(rows, heads, length + 5, width, dtype=dtype, seed=seed) for seed in (1, 2))
        self.scale = width**-0.5

    def attend(self, bias: Tensor | None, prompts: kernels.LayerPromptCache | None) -> Tensor:
        keys, values = self.cache
        self.updated = keys.clone(), values.clone()
        return kernels.attend(
            self.projected, self.cosine, self.turned, self.updated, self.length, self.scale, bias, prompts
        )

    def exact(self, bias: Tensor | None, prompts: kernels.LayerPromptCache | None) -> Tensor:
        heads = self.projected.double().view(self.rows, -1, self.width)
        queries, keys = self.group * self.heads, (self.group + 1) * self.heads
        placed = rotate(heads[:, None, :keys], self.cosine.double(), self.turned.double()).squeeze(1)
        query, new = placed[:, :queries].view(self.rows, self.heads, self.group, -1), placed[:, queries:]
        self.new = new
        known = [part[:, :, : self.length - 1].double() for part in self.cache]
        key = torch.cat([known[0], new[:, :, None]], 2)
        value = torch.cat([known[1], heads[:, keys:, None]], 2)
        score = query @ key.transpose(-1, -2) * self.scale
        if bias is not None:
            score = score + bias.double()[:, None, None]
        if prompts is not None:
            before = query @ prompts.keys.double()[prompts.prompt].transpose(-1, -2) * self.scale
            if prompts.bias is not None:
                before = before + prompts.bias.double()[prompts.prompt][:, None, None]
            score = torch.cat([before, score], -1)
            value = torch.cat([prompts.values.double()[prompts.prompt], value], 2)
        return (score.softmax(-1) @ value).flatten(1)


def prompts_of(case: Case, length: int, padded: bool) -> kernels.LayerPromptCache:
    dtype = case.projected.dtype
    keys, values = (random(3, case.heads, length, case.width, dtype=dtype, seed=seed) for seed in (3, 4))
    bias = torch.zeros(3, length).masked_fill_(torch.arange(length) < torch.tensor([[0], [2], [1]]), float("-inf"))
    prompt = torch.tensor([2, 0, 2, 1, 0, 2])
    return kernels.LayerPromptCache(keys, values, bias if padded else None, prompt, prompt.argsort(stable=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "width"), [(1, 16), (3, 64), (4, 80), (7, 32)])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_attention(length: int, group: int, width: int, dtype: torch.dtype) -> None:
    case = Case(dtype, group, width, length)
    masked = torch.zeros(6, length).masked_fill_(
        torch.arange(length) < torch.tensor([0, 5, 0, 1, 2, 3])[:, None].clamp_max(length - 1), float("-inf")
    )
    for bias in (None, masked, masked[3:4]):
        near(case.attend(bias, None), case.exact(bias, None), ALLOWED[dtype])
    for padded in (False, True):
        prompts = prompts_of(case, 19, padded)
        near(case.attend(None, prompts), case.exact(None, prompts), ALLOWED[dtype])
    keys, values = case.updated
    near(keys[:, :, length - 1], case.new, ALLOWED[dtype])
    assert torch.equal(values[:, :, length - 1].flatten(1), case.projected[:, (group + 1) * 2 * width :])
    for updated, before in zip(case.updated, case.cache, strict=True):
        unchanged = torch.arange(length + 5) != length - 1
        assert torch.equal(updated[:, :, unchanged], before[:, :, unchanged])


@pytest.mark.parametrize(
    "break_it",
    [
        lambda case: setattr(case, "length", 99),
        lambda case: setattr(case, "cosine", case.cosine.bfloat16()),
        lambda case: setattr(case, "turned", case.turned[1:]),
        lambda case: setattr(case, "projected", case.projected[:, 16:]),
        lambda case: setattr(case, "cache", tuple(part[:, :, :4] for part in case.cache)),
    ],
)
def test_attention_that_would_leave_its_tensors_is_refused(break_it: Callable[[Case], None]) -> None:
    case = Case(torch.float32, 2, 32, 9)
    break_it(case)
    with pytest.raises(ValueError, match="does not fit"):
        case.attend(None, None)


def test_prompts_that_do_not_fit_are_refused() -> None:
    case = Case(torch.float32, 2, 32, 9)
    prompts = prompts_of(case, 7, True)
    for wrong in (
        prompts._replace(prompt=prompts.prompt[1:]),
        prompts._replace(order=prompts.order.int()),
        prompts._replace(keys=prompts.keys.bfloat16()),
        prompts._replace(bias=prompts.bias.double()),  # type: ignore[union-attr]
    ):
        with pytest.raises(ValueError, match="do not fit"):
            case.attend(None, wrong)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(default: torch.dtype) -> None:
    weight = random(3, 50)
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            product = kernels.PackedWeight(weight, None)(weight)
    finally:
        torch.set_default_dtype(torch.float32)
    near(product, weight.double() @ weight.double().T, 3e-6)
