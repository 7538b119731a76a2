"""What is a causal language model, and what is refused in words before anything is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

from dpr_lightning.cli.main import main
from dpr_lightning.engine import acted_loss
from dpr_lightning.errors import InputError
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, check_policy, save_policy
from tests.tiny import DECODER, tiny_tokenizer
from tests.workspace import write_rows, write_sft_config

TOKENS = torch.arange(3, 11).unsqueeze(0)
MASK = TOKENS > 5
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}


def write_model(folder: Path, make: Any, kind: str, **fields: Any) -> str:
    tokenizer = tiny_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if "text_config" in fields:
        fields["text_config"] = {**DECODER, "vocab_size": len(tokenizer), "head_dim": 16, **special} | dict(
            fields["text_config"]
        )
    else:
        fields = {"vocab_size": len(tokenizer), **special} | fields
    make.from_config(AutoConfig.for_model(kind, **fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_an_encoder_is_refused_with_the_switch_that_makes_it_causal(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = write_model(tmp_path / "bert", AutoModelForMaskedLM, "bert", **sizes)
    with pytest.raises(InputError, match=r"not causal.*`is_decoder: true`"):
        check_policy(PolicySpec(source=encoder))
    rows = write_rows(tmp_path / "d.jsonl", [{"prompt": "1 + 1 =", "completion": "2"}])
    assert main(["fit", "--config", write_sft_config(tmp_path, {"source": encoder}, rows)]) == 2
    assert not (tmp_path / "cache").exists()  # before data are read
    config = AutoConfig.from_pretrained(encoder)
    config.is_decoder = True
    config.save_pretrained(encoder)
    check_policy(PolicySpec(source=encoder))
    model, _ = build_policy(PolicySpec(source=encoder))
    changed = TOKENS.clone()
    changed[0, -1] += 1
    logits = model.eval()(torch.cat([TOKENS, changed])).logits[:, :-1]
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize(("kind", "says"), [("t5", "encoder-decoder"), ("bart", "encoder-decoder"), ("vit", "'vit'")])
def test_other_kinds_are_named(kind: str, says: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=says):
        check_policy(PolicySpec(source=str(tmp_path)))


GEMMA3 = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
LLAVA = {"image_token_index": 5, "text_config": {"model_type": "llama"}}


@pytest.mark.parametrize(
    ("kind", "make", "fields"),
    [
        ("gemma3", AutoModelForCausalLM, {"text_config": {}, "vision_config": VISION, **GEMMA3}),
        (
            "llava",
            AutoModelForImageTextToText,
            {**LLAVA, "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}},
        ),
    ],
)
def test_a_model_that_reads_images_is_trained_on_text(kind: str, make: Any, fields: Any, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", make, kind, **fields)
    spec = PolicySpec(source=source)
    model, tokenizer = build_policy(spec)
    acted_loss(model, TOKENS, MASK, lambda logprob, _: -logprob.sum()).loss.backward()
    trained = {name: weight.grad is not None for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(trained.values())  # a weight without a gradient stops ranks that wait for it
    assert not any("vision" in name for name in trained)
    folder = save_policy(model, tokenizer, tmp_path / "policy", spec)
    again = make.from_pretrained(folder)
    torch.testing.assert_close(again(TOKENS).logits, model.eval()(TOKENS).logits, atol=1e-6, rtol=0)
    adapted, _ = build_policy(PolicySpec(source=source, lora=LoraSpec(rank=2)))
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert names
    assert not any("vision" in name or "projector" in name for name in names)
