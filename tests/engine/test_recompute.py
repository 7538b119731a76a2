"""Layers that recompute activations, against those of the library."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpr_lightning.engine import half_precision as attention
from dpr_lightning.engine.recompute import recompute_activations
from tests.tiny import decoder, unknown_decoder, with_adapters

KINDS: dict[str, Any] = {
    "llama": lambda: decoder("llama"),
    "biases": lambda: decoder("llama", mlp_bias=True, attention_bias=True),
    "mistral": lambda: decoder("mistral", sliding_window=None),
    "qwen2": lambda: decoder("qwen2"),
    "qwen3": lambda: decoder("qwen3", head_dim=8),
    "lora": lambda: with_adapters(decoder("llama")),
}
TOKENS = torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(0))


def both(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    library: nn.Module = KINDS[kind]().to(dtype).train()
    for name, weight in library.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    lean = copy.deepcopy(library)
    recompute_activations(lean)
    return library, lean


def gradients(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    loss = model(input_ids=TOKENS, labels=TOKENS).loss
    return loss, list(torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad]))


def saved_bytes(model: nn.Module) -> int:
    """Bytes that autograd saves, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    result: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        index = tensor.untyped_storage().data_ptr()
        if index not in weights:
            result[index] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=TOKENS, use_cache=False).logits.sum()  # alive, so that no place is taken twice
        assert loss.requires_grad
    return sum(result.values())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_models_own(kind: str, checkpointed: bool) -> None:
    library, lean = both(kind)
    if checkpointed:
        for model in (library, lean):
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]
    (loss, expected), (found_loss, result) = gradients(library), gradients(lean)
    assert torch.equal(loss, found_loss)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


class _Taken(TorchDispatchMode):
    """Counts the elements that operations allocate; views and in-place operations allocate none."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view and not operation._schema.is_mutable and isinstance(result, Tensor):
            self.numbers += result.numel()
        return result


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_gradients_a_pass_gives_the_same_and_takes_less(kind: str) -> None:
    library, lean = both(kind)
    with _Taken() as of_own:
        expected = library(input_ids=TOKENS).logits
    with _Taken() as of_lean:
        result = lean(input_ids=TOKENS).logits
    assert torch.equal(expected, result)
    config: Any = library.config
    units = 2 * config.num_hidden_layers * config.intermediate_size  # the activation and the product
    assert of_own.numbers - of_lean.numbers >= (0 if kind == "lora" else TOKENS.numel() * units)


@torch.no_grad()
def test_what_a_hook_was_shown_is_not_written_over() -> None:
    _, lean = both("llama")
    seen: list[tuple[Tensor, Tensor]] = []
    gate: Any = lean.get_submodule("model.layers.0.mlp.gate_proj")
    gate.register_forward_hook(lambda module, arguments, result: seen.append((result, result.clone())))
    lean(input_ids=TOKENS)
    assert torch.equal(*seen[0])


def distance(model: nn.Module, exact: list[Tensor]) -> float:
    """Distance of its gradients from ``exact``."""
    _, result = gradients(model)
    pairs = zip(result, exact, strict=True)
    return sum(float((ours.float() - theirs).square().sum()) for ours, theirs in pairs) ** 0.5


@pytest.mark.parametrize("kind", ["llama", "qwen3", "lora"])
def test_half_precision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as near to float32 as the library's layers."""
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: False)
    library, lean = both(kind, torch.bfloat16)
    _, exact = gradients(copy.deepcopy(library).float())
    assert torch.equal(gradients(library)[0], gradients(lean)[0])
    assert distance(lean, exact) <= 1.1 * distance(library, exact)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "lora"])
def test_half_precision_by_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, against transformers' eager attention, which rounds scores too."""
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: True)
    library, lean = both(kind, torch.bfloat16)
    _, exact = gradients(copy.deepcopy(library).float())
    config: Any = library.config
    config._attn_implementation = "eager"
    assert not torch.equal(gradients(library)[0], gradients(lean)[0])  # so they are computed in two ways
    assert distance(lean, exact) <= 1.1 * distance(library, exact)


@pytest.mark.parametrize(
    ("dtype", "norm", "by_blocks"), [(torch.float32, 1, False), (torch.bfloat16, 2, False), (torch.bfloat16, 2, True)]
)
def test_what_is_kept_is_less_by_what_can_be_made_again(
    dtype: torch.dtype, norm: int, by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: by_blocks)
    library, lean = both("llama", dtype)
    config: Any = library.config
    tokens, itemsize, layers = TOKENS.numel(), torch.finfo(dtype).bits // 8, config.num_hidden_layers
    # The activation and the product of each unit; the normalised copy of each norm, and, where it is not float32, twice
    # as much for a copy that is, in the place of what the norm was given.
    units = 2 * layers * config.intermediate_size
    norms = norm * (2 * layers + 1) * config.hidden_size
    less = saved_bytes(library) - saved_bytes(lean)
    assert less >= tokens * itemsize * (units + norms) if by_blocks else less == tokens * itemsize * (units + norms)


def test_others_are_left_alone() -> None:
    model = unknown_decoder()
    before = [type(module) for module in model.modules()]
    recompute_activations(model)
    assert [type(module) for module in model.modules()] == before


def test_a_model_that_is_let_go_is_gone() -> None:
    _, lean = both("llama")
    assert "forward" not in vars(lean.get_submodule("model.norm"))
    references = [weakref.ref(weight) for weight in lean.parameters()]
    gc.disable()
    try:
        del lean
        assert not any(weight() is not None for weight in references)
    finally:
        gc.enable()


def test_under_autocast_the_models_own_layers_are_called() -> None:
    library, lean = both("llama")
    with torch.autocast("cpu", torch.bfloat16):
        (loss, expected), (found_loss, result) = gradients(library), gradients(lean)
    assert torch.equal(loss, found_loss)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
