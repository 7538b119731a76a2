"""Descriptions of policies that cannot be, tokenizers, and folders that appear whole."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_folder
from dpr_lightning.policies import PolicySpec, build_policy, load_tokenizer, save_policy, special_tokens
from tests.tiny import tiny_tokenizer


def test_random_weights_follow_their_seed_and_the_tokenizer(tiny_policy_folder: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    spec = PolicySpec(architecture={"model_type": "llama", **shape}, tokenizer=str(tiny_policy_folder))
    first, tokenizer = build_policy(spec, seed=1)
    second, _ = build_policy(spec, seed=1)
    third, _ = build_policy(spec, seed=2)
    assert first.config.vocab_size == len(tokenizer)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)
    assert first.training


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "exactly one"),
        ({"source": "a", "architecture": {"model_type": "llama"}}, "exactly one"),
        ({"architecture": {"model_type": "llama"}}, "tokenizer"),
        ({"architecture": {"hidden_size": 3}, "tokenizer": "t"}, "model_type"),
    ],
)
def test_descriptions_that_contradict_themselves(options: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        PolicySpec(**options)  # type: ignore[arg-type]


def test_saved_folder_is_an_ordinary_one(tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder))
    model, tokenizer = build_policy(spec)
    folder = save_policy(model, tokenizer, tmp_path / "policy", spec)
    tokens = torch.tensor([[3, 4, 5]])
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(reloaded(tokens).logits, model.eval()(tokens).logits, atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert reloaded.generation_config.pad_token_id != reloaded.generation_config.eos_token_id


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_padding_gets_a_token_of_its_own(pad: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    vocabulary_size = len(tokenizer)
    loaded = load_tokenizer(str(tmp_path))
    load_tokenizer(str(tmp_path))
    assert loaded.pad_token == "<pad>"
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == vocabulary_size
    assert caplog.text.count("now pads") == 1
    assert special_tokens(loaded).stops == (loaded.eos_token_id,)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no EOS"):
        load_tokenizer(str(tmp_path))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with whole_folder(folder) as unfinished:
        (unfinished / "weights").write_text("old")
        assert not folder.exists()
    with pytest.raises(RuntimeError, match="killed"), whole_folder(folder) as unfinished:  # noqa: PT012
        (unfinished / "weights").write_text("new")
        raise RuntimeError("killed")
    assert (folder / "weights").read_text() == "old"
    with whole_folder(folder) as unfinished:
        (unfinished / "weights").write_text("newer")
    assert (folder / "weights").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_lightning_checkpoint_of_another_architecture_is_refused(tiny_policy_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"policy.body.weight": torch.zeros(2)}}, path)
    with pytest.raises(InputError, match="another architecture"):
        build_policy(PolicySpec(source=str(tiny_policy_folder), checkpoint=str(path)))
    with pytest.raises(InputError, match="does not exist"):
        build_policy(PolicySpec(source=str(tiny_policy_folder), checkpoint=str(tmp_path / "none.ckpt")))


def test_a_lightning_checkpoint_gives_its_weights(tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder))
    model, _ = build_policy(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": {f"policy.{name}": value for name, value in model.state_dict().items()}}, path)
    loaded, _ = build_policy(PolicySpec(source=str(tiny_policy_folder), checkpoint=str(path)))
    tokens = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=0, rtol=0)
