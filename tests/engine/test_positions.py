"""Rows longer than the positions of a model: an error for tables, a warning for rotary positions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpr_lightning.cli.main import main
from dpr_lightning.engine import acted_loss, check_positions, positions_of
from dpr_lightning.engine.positions import ends_at
from dpr_lightning.errors import InputError
from tests.tiny import tiny_tokenizer, with_adapters
from tests.workspace import make_workspace, write_dpr_config, write_rows, write_sft_config

SMALL = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
HIDDEN = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
KINDS: dict[str, tuple[dict[str, Any], int | None]] = {
    "gpt2": (GPT, 12),
    "gptj": ({**GPT, "rotary_dim": 4}, 12),
    "opt": ({**HIDDEN, "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 12}, 12),
    "roberta": ({**HIDDEN, "max_position_embeddings": 12, "is_decoder": True}, 11),
    "mpt": ({"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 12}, 12),
    "bloom": ({"hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "llama": ({**HIDDEN, "max_position_embeddings": 12}, 12),
}
GOES_ON = {"bloom", "llama"}


def model_of(kind: str) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **KINDS[kind][0])).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_positions_is_what_the_model_can_read(kind: str) -> None:
    model = model_of(kind)
    limit = positions_of(model)
    assert limit == KINDS[kind][1]
    tokens = torch.full((1, (limit or 40) + 1), 5)
    assert model(input_ids=tokens[:, :-1]).logits.isfinite().all()
    if kind in GOES_ON:
        assert model(input_ids=tokens).logits.isfinite().all()
        assert limit is None or not ends_at(model, limit)
    else:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=tokens)
        assert limit is not None
        assert ends_at(model, limit)


def test_a_row_past_a_table_is_refused_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    model = with_adapters(model_of("gpt2"))
    check_positions(model, 12, "A row has 12 tokens", str)
    with pytest.raises(InputError, match=r"A row has 13 tokens.*\(gpt2\) has 12 positions.*Cut to 12"):
        check_positions(model, 13, "A row has 13 tokens", lambda limit: f"Cut to {limit}.")
    rotary = model_of("llama")
    for _ in range(2):
        check_positions(rotary, 13, "A row has 13 tokens", str)
    assert ["A row has 13 tokens" in message and "12 positions" in message for message in caplog.messages] == [True]


def test_every_forward_pass_names_the_limit() -> None:
    tokens = torch.full((1, 13), 5)
    with pytest.raises(InputError, match="13 tokens"):
        acted_loss(model_of("gpt2"), tokens, torch.arange(13)[None] > 4, lambda logprob, _: logprob.sum())


def write_gpt2(folder: Path, positions: int) -> str:
    tokenizer = tiny_tokenizer()
    special = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model("gpt2", **{**GPT, "n_positions": positions}, **special)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_commands_refuse_at_the_start_and_their_advice_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = write_gpt2(tmp_path / "gpt2", 16)
    long = {"prompt": "1 + 1 =", "completion": "2" * 20}
    rows = write_rows(tmp_path / "long.jsonl", [{"prompt": "1 + 2 =", "completion": "3"}, long])
    config = write_sft_config(tmp_path, {"source": policy}, rows)
    assert main(["fit", "--config", config]) == 2
    assert "long.jsonl:2 has 28 tokens" in (message := capsys.readouterr().err)
    assert "has 16 positions" in message
    assert "`data.max_length: 16` with `data.over_length: drop`" in message
    advice = ["--data.max_length", "16", "--data.over_length", "drop"]
    assert main(["fit", "--config", config, *advice]) == 0
    generate = ["generate", "--policy", policy, "--prompts", rows, "--max_new_tokens"]
    assert main([*generate, "10"]) == 2
    assert "`max_new_tokens` to at most 9" in capsys.readouterr().err
    assert main([*generate, "9"]) == 0


def test_rollouts_are_compared_before_the_first_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace(tmp_path)._replace(sft=write_gpt2(tmp_path / "gpt2", 10))
    assert main(["fit", "--config", write_dpr_config(tmp_path, workspace)]) == 2
    message = capsys.readouterr().err
    assert "`data.sampling.max_new_tokens` is 6" in message
    assert "at most 3" in message
