"""Which layers get adapters: names that match nothing, what is said, and experts that are one weight."""

from pathlib import Path

import pytest
import torch

from dpr_lightning.engine import acted_loss
from dpr_lightning.errors import InputError
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, save_policy
from tests.tiny import write_decoder

TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7).expand(2, 7) > 2
FUSED = ["experts.gate_up_proj", "experts.down_proj"]
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "layer_types": ["full_attention", "sliding_attention"]},
}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ["q_projj"]}, r"target_modules`.*'q_projj'.*Did you mean q_proj"),
        ({"target_modules": ["v_proj", "nothing"]}, r"'nothing'. There are: .*q_proj"),
        ({"target_modules": "q_proj"}, r"pattern for whole names.*\[q_proj\]"),
        ({"target_modules": "(q_proj"}, r"peft refuses `model.policy.lora`"),
        ({"target_modules": ["input_layernorm"]}, r"peft refuses `model.policy.lora`"),
        ({"rank": 0}, r"peft refuses `model.policy.lora`"),
        ({"target_parameters": ["experts.down_proj"]}, r"target_parameters`.*'experts.down_proj'"),
        ({"target_parameters": ["q_proj.weight"], "dropout": 0.1}, r"dropout: 0"),
    ],
)
def test_names_of_no_layer_are_refused(tiny_policy_folder: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_policy(PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(**options)))  # type: ignore[arg-type]


def test_what_got_an_adapter_is_said(tiny_policy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build_policy(PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2, target_modules=["q_proj"])))
    # Two layers of 32 inputs and 32 outputs.
    assert "LoRA of rank 2 on 2 layers (q_proj 2): 256 weights are trained." in caplog.messages


@pytest.mark.parametrize("kind", EXPERTS)
def test_fused_experts_are_named_and_can_be_trained(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_decoder(tmp_path / "base", kind, num_experts_per_tok=2, **EXPERTS[kind])
    build_policy(PolicySpec(source=source, lora=LoraSpec(rank=2)))
    assert f"`model.policy.lora.target_parameters: [{', '.join(FUSED)}]`" in caplog.text
    caplog.clear()
    spec = PolicySpec(source=source, lora=LoraSpec(rank=2, target_modules=["q_proj"], target_parameters=FUSED))
    model, tokenizer = build_policy(spec)
    assert "no adapter" not in caplog.text
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):  # of an adapter that starts as its base, the second half alone has a gradient at first
        acted_loss(model, TOKENS, MASK, lambda logprob, _: -logprob.mean()).loss.backward()
        optimizer.step()
    changed = [name for name, weight in model.named_parameters() if "experts" in name and weight.grad is not None]
    assert len(changed) == 2 * 2 * 2  # layers, weights, halves
    trained = model.eval()(TOKENS).logits
    folder = save_policy(model, tokenizer, tmp_path / "adapter", spec)
    loaded, _ = build_policy(PolicySpec(source=str(folder)), trainable=False)
    torch.testing.assert_close(loaded(TOKENS).logits, trained, atol=1e-5, rtol=0)
    base, _ = build_policy(PolicySpec(source=source), trainable=False)
    assert not torch.allclose(base(TOKENS).logits, trained, atol=1e-3)


def test_all_linear_leaves_out_layers_whose_adapters_would_do_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_decoder(tmp_path / "base", "mamba", state_size=4, time_step_rank=2)
    with caplog.at_level("INFO"):
        model, _ = build_policy(PolicySpec(source=source, lora=LoraSpec(rank=2)))
    assert "on 4 layers (in_proj 2, x_proj 2)" in caplog.text
    acted_loss(model, TOKENS, MASK, lambda logprob, _: -logprob.mean()).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    with pytest.raises(InputError, match="peft refuses"):
        build_policy(PolicySpec(source=source, lora=LoraSpec(rank=2, target_modules=["out_proj"])))
