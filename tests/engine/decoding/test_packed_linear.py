"""Products with packed weights, against the layers of those weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.engine import kernels
from dpr_lightning.engine.decoding import packed_bytes
from dpr_lightning.engine.decoding import packed_linear as products
from dpr_lightning.engine.decoding.one_token import OneTokenPass
from dpr_lightning.engine.decoding.packed_linear import PackedLinear, _packed_types
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.tiny import decoder, unknown_decoder, with_adapters

pytestmark = pytest.mark.usefixtures("with_kernels")
WIDTH, HEIGHT = 192, 384
needs_copies = pytest.mark.skipif(not _packed_types(), reason="this build of PyTorch lays no weights out")


def layer(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, HEIGHT, bias=bias).to(dtype)


@pytest.mark.parametrize("rows", [1, 5, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_values_are_those_of_the_layer(dtype: torch.dtype, bias: bool, rows: int, with_kernels: bool) -> None:
    linear, exact = layer(bias, dtype), layer(bias, dtype).double()
    inputs, other = torch.randn(rows, WIDTH).to(dtype), torch.randn(rows, HEIGHT).to(dtype)
    product = PackedLinear(linear)
    assert product.lays_out == (with_kernels or dtype in _packed_types())
    truth: Tensor = exact(inputs.double())
    relative = 1e-5 if dtype == torch.float32 else 1.6e-2
    for result, expected in (
        (product(inputs), truth),
        (product(inputs, then="silu"), silu(truth)),
        (product(inputs, other, "times"), truth * other.double()),
        (product(inputs, other, "plus"), truth + other.double()),
    ):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, atol=relative, rtol=relative)


@pytest.mark.parametrize("biases", [(True, True), (False, False), (True, False)])
@torch.no_grad()
def test_several_stand_next_to_each_other(biases: tuple[bool, bool], with_kernels: bool) -> None:
    layers = [layer(bias) for bias in biases]
    inputs = torch.randn(5, WIDTH)
    product = PackedLinear(*layers)
    assert product.lays_out == (len(set(biases)) == 1 and (with_kernels or torch.float32 in _packed_types()))
    expected = torch.cat([linear(inputs) for linear in layers], -1)
    torch.testing.assert_close(product(inputs), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_under_autocast_the_layer_is_called() -> None:
    linear, inputs = layer(), torch.randn(5, WIDTH)
    product = PackedLinear(linear)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = product(inputs), linear(inputs)
        added = product(inputs, expected, "plus")
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)
    assert torch.equal(added, expected + expected)


@needs_copies
@torch.no_grad()
def test_operations_are_counted() -> None:
    product, inputs = PackedLinear(layer()), torch.randn(5, WIDTH)
    assert product.lays_out
    with FlopCounterMode(display=False) as counter:
        product(inputs, product(inputs, then="silu"), "times")
    assert counter.get_total_flops() == 2 * 2 * 5 * WIDTH * HEIGHT


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(9, 8).bfloat16(),  # small, and of no whole pairs
        lambda: nn.Linear(WIDTH, HEIGHT).double(),
        lambda: with_adapters(decoder("llama")).get_submodule("base_model.model.model.layers.0.mlp.up_proj"),
    ],
    ids=["small", "double", "adapted"],
)
@torch.no_grad()
def test_other_layers_are_called(build: object) -> None:
    assert callable(build)
    linear: nn.Module = build()
    weight = next(linear.parameters())
    inputs = torch.randn(3, weight.shape[1], dtype=weight.dtype)
    product = PackedLinear(linear)
    assert not product.lays_out
    assert torch.equal(product(inputs), linear(inputs))
    assert torch.equal(product(inputs, linear(inputs), "plus"), 2 * linear(inputs))


@needs_copies
def test_bytes_of_copies_are_those_that_sampling_makes(monkeypatch: pytest.MonkeyPatch, with_kernels: bool) -> None:
    copied_bytes: list[int] = []
    monkeypatch.setattr(products, "_MANY_WEIGHTS", 1024)
    for kind in (products._OneDnnLinear, kernels.PackedWeight):
        begin = kind.__init__

        def noted(copy: Any, weight: Tensor, bias: Tensor | None, begin: Any = begin) -> None:
            begin(copy, weight, bias)
            copied_bytes.append(copy._panels.nbytes if with_kernels else weight.nbytes)

        monkeypatch.setattr(kind, "__init__", noted)
    model = decoder("llama").eval()
    OneTokenPass(model)  # makes none before it is called
    assert not copied_bytes
    with torch.no_grad():
        sample(model, [[1, 2, 3]], SamplingOptions(3), stop_tokens=[], pad_token=0)
    # Found to be equal to the model's own pass, and used.
    assert sum(copied_bytes) == 2 * packed_bytes(model) > 0
    head: Any = model.get_output_embeddings()
    assert packed_bytes(with_adapters(model)) == PackedLinear(head).packed_bytes > 0  # which has none
    assert packed_bytes(unknown_decoder()) == 0


def test_the_copy_goes_with_the_product() -> None:
    """A new instance has the changed weights."""
    linear = layer()
    inputs = torch.randn(3, WIDTH)
    with torch.no_grad():
        before = PackedLinear(linear)(inputs)
        linear.weight.mul_(2.0)
        torch.testing.assert_close(PackedLinear(linear)(inputs) - linear.bias, 2 * (before - linear.bias))
