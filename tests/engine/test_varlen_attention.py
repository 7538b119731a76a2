"""Rows end to end under `attention: varlen`, against rows side by side."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.engine import acted_loss, action_logits, packs_rows
from dpr_lightning.engine import varlen_attention as packed_attention
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.tiny import decoder, unknown_decoder, with_adapters
from tests.training import quiet_trainer, write_demonstrations

KINDS: dict[str, Any] = {
    "llama": lambda: decoder("llama"),
    "qwen2": lambda: decoder("qwen2"),
    "qwen3": lambda: decoder("qwen3", head_dim=32),
    "mistral": lambda: decoder("mistral", sliding_window=None),
    "own_keys": lambda: decoder("llama", num_key_value_heads=4),
    "adapters": lambda: with_adapters(decoder("llama")),
}
MASK = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()


def model_of(kind: str, attention: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = KINDS[kind]().double().eval()
    model.set_attn_implementation(attention)  # type: ignore[operator]
    return model


def tokens() -> Tensor:
    return torch.randint(3, 40, MASK.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own_keys"])
def test_logits_and_gradients_are_those_of_rows_side_by_side(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, result = [], []

    def mask(*arguments: Any, **more: Any) -> Any:
        masks.append(more["q_length"])
        return sdpa_mask(*arguments, **more)

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "varlen", mask)
    for attention in ("sdpa", "varlen"):
        model = model_of(kind, attention)
        assert packs_rows(model) == (attention == "varlen")
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        scored = action_logits(model, tokens(), MASK)
        loss = scored.logits.log_softmax(-1).gather(-1, scored.tokens.unsqueeze(-1)).squeeze(-1)[scored.mask].sum()
        fused = acted_loss(model, tokens(), MASK, lambda logprob, _: -logprob.sum()).loss
        torch.testing.assert_close(fused, -loss)
        result.append((scored.logits[scored.mask], *torch.autograd.grad(loss, weights)))
    for ours, theirs in zip(*result, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    assert int((MASK * torch.arange(1, 7)).amax(1).sum()) not in masks  # none of all tokens by all tokens


def test_recomputed_activations_see_the_same_rows() -> None:
    result = []
    for recomputes in (False, True):
        model = model_of("llama", "varlen").train()
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        acted_loss(model, tokens(), MASK, lambda logprob, _: -logprob.sum()).loss.backward()
        result.append([weight.grad for weight in model.parameters()])
    for ours, theirs in zip(*result, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_autocast_leaves_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions make float32 of queries and keys, and the kernel takes one type alone."""
    model = model_of("qwen3", "varlen").float()
    row_by_row = packed_attention._row_by_row

    def of_one_type(query: Tensor, key: Tensor, value: Tensor, *more: Any) -> Tensor:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        return row_by_row(query, key, value, *more)

    monkeypatch.setattr(packed_attention, "_row_by_row", of_one_type)
    with torch.autocast("cpu", torch.bfloat16):
        packed = action_logits(model, tokens(), MASK)
        model.set_attn_implementation("sdpa")  # type: ignore[operator]
        padded = action_logits(model, tokens(), MASK)
    difference = (packed.logits[packed.mask] - padded.logits[padded.mask]).abs().max()
    assert difference < 0.05 * padded.logits[padded.mask].abs().max()


def test_attention_drops_out_while_training() -> None:
    torch.manual_seed(0)
    model = decoder("llama", attention_dropout=0.5).train()
    model.set_attn_implementation("varlen")  # type: ignore[operator]
    first, second = (action_logits(model, tokens(), MASK) for _ in range(2))
    assert not torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("shares_keys", [False, True])
@pytest.mark.parametrize("kind", ["llama", "own_keys"])
def test_what_the_kernel_is_given(shares_keys: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of :func:`torch.nn.attention.varlen.varlen_attn`, as PyTorch 2.11 has it and as 2.12 does."""
    queries = []

    def stand_in(
        query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, of_keys: Tensor, longest: int, most: int, **more: Any
    ) -> Tensor:
        queries.append(more)
        assert bounds.dtype == torch.int32
        assert torch.equal(bounds, of_keys)
        assert longest == most == int(bounds.diff().max())
        assert more["window_size"] == (-1, 0)
        assert key.shape == value.shape
        assert (key.shape[1] == query.shape[1]) or more.get("enable_gqa", False)
        return row_by_row(query, key, value, bounds, more["scale"], 0.0)

    expected = action_logits(model_of(kind, "varlen"), tokens(), MASK)
    row_by_row = packed_attention._row_by_row

    def by_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, dropout: float) -> Tensor:
        return packed_attention._by_kernel(query, key, value, bounds, int(bounds.diff().max()), scale)

    monkeypatch.setattr(packed_attention, "_varlen_attention", lambda: (stand_in, shares_keys))
    monkeypatch.setattr(packed_attention, "_row_by_row", by_kernel)  # on a CPU nothing else is asked
    result = action_logits(model_of(kind, "varlen"), tokens(), MASK)
    assert queries
    assert all(("enable_gqa" in more) == (shares_keys and kind == "llama") for more in queries)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-12, rtol=0)


def test_pytorch_takes_what_the_kernel_is_given() -> None:
    attention, shares_keys = packed_attention._varlen_attention()
    more = {"enable_gqa": True} if shares_keys else {}
    inspect.signature(attention).bind(1, 2, 3, 4, 5, 6, 7, window_size=(-1, 0), scale=0.5, **more)


def test_only_known_decoders_are_packed() -> None:
    model = unknown_decoder()
    model.set_attn_implementation("varlen")  # type: ignore[operator]
    assert not packs_rows(model)
    ours = action_logits(model.eval(), tokens(), MASK)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    theirs = action_logits(model, tokens(), MASK)
    torch.testing.assert_close(ours.logits[ours.mask], theirs.logits[theirs.mask])


def test_prompts_of_many_lengths_are_answered_alike() -> None:
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    result = []
    for samples in (1, 3):
        for attention in ("sdpa", "varlen"):
            model, options = model_of("llama", attention).float(), SamplingOptions(9)
            result.append(sample(model, prompts, options, stop_tokens=[1], pad_token=0, num_samples=samples))
    for padded, packed in ((result[0], result[1]), (result[2], result[3])):
        assert torch.equal(padded.tokens, packed.tokens)
        torch.testing.assert_close(padded.logprob, packed.logprob, atol=2e-5, rtol=0)


def test_a_run_learns_the_same(tiny_policy_folder: Path, tmp_path: Path) -> None:
    result = []
    for attention in ("sdpa", "varlen"):
        spec = PolicySpec(source=str(tiny_policy_folder), attention=attention)
        module = SupervisedIRL(spec)
        data = DemonstrationDataModule(
            write_demonstrations(tmp_path / "rows.jsonl"), batch_size=4, cache_dir=str(tmp_path / "cache")
        )
        quiet_trainer(tmp_path / attention, max_steps=4).fit(module, data)
        result.append(module.policy.state_dict())
        module.policy.save_pretrained(tmp_path / attention)  # type: ignore[operator]
        assert "varlen" not in (tmp_path / attention / "config.json").read_text()
    moved = build_policy(PolicySpec(source=str(tiny_policy_folder)))[0].state_dict()
    for name, weight in result[0].items():
        torch.testing.assert_close(weight, result[1][name], atol=1e-6, rtol=0)
    assert any(not torch.equal(weight, moved[name]) for name, weight in result[0].items())


@pytest.mark.parametrize("looks", [True, False])
def test_flash_attention_that_ignores_positions_is_not_given_packed_rows(
    looks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a decoder whose insides are not known, as some do not pass positions to their attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        if not looks:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril().expand(1, 1, -1, -1)
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    AttentionInterface.register("flash_for_test", flash)
    AttentionMaskInterface.register("flash_for_test", sdpa_mask)
    torch.manual_seed(0)
    model = decoder("mixtral", num_local_experts=2)
    model.config._attn_implementation = "flash_for_test"
    assert packs_rows(model) == looks
    assert ("its rows are padded instead" in caplog.text) != looks
    assert model.training
    tokens, mask = torch.randint(3, 40, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[:, 0] = False
    alone = torch.cat([action_logits(model, tokens[row : row + 1], mask[:1]).logits for row in range(2)])
    torch.testing.assert_close(action_logits(model, tokens, mask).logits, alone, atol=1e-5, rtol=0)
