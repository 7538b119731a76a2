"""GGUF bases: read right, trained like any other, exported as ordinary folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dpr_lightning.engine import action_logits
from dpr_lightning.errors import InputError
from dpr_lightning.policies import PolicySpec, build_policy, save_policy, special_tokens

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

HEADS = 2
FILE = "tiny.Q4_1.gguf"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A folder with a Llama in GGUF, Q4_1 as published ones are, and the model that it must be read as."""
    folder = tmp_path_factory.mktemp("gguf")
    return folder, write_gguf(folder / FILE)


def test_weights_are_those_of_the_file(source: tuple[Path, LlamaForCausalLM]) -> None:
    folder, expected = source
    policy, tokenizer = build_policy(PolicySpec(source=str(folder), gguf_file=FILE))
    tokens = torch.tensor([tokenizer("12 + 34 =")["input_ids"]])
    torch.testing.assert_close(policy.eval()(tokens).logits, expected.eval()(tokens).logits, atol=1e-5, rtol=1e-4)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in policy.parameters())


def test_tokenizer_separates_padding_from_the_end(source: tuple[Path, LlamaForCausalLM]) -> None:
    policy, tokenizer = build_policy(PolicySpec(source=str(source[0]), gguf_file=FILE))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert special_tokens(tokenizer, policy).stops == (tokenizer.eos_token_id,)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12 + 34"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\n12 + 34<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt


def test_trained_base_is_exported_as_a_plain_folder(source: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    spec = PolicySpec(source=str(source[0]), gguf_file=FILE)
    policy, tokenizer = build_policy(spec)
    tokens = torch.tensor([tokenizer("12 + 34 = 46<|im_end|>")["input_ids"]])
    before = policy.eval()(tokens).logits.detach()
    train_one_step(policy, tokens)
    after = policy.eval()(tokens).logits.detach()
    assert (after - before).abs().max() > 1e-3

    folder = save_policy(policy, tokenizer, tmp_path / "exported", spec)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(plain(tokens).logits, after, atol=0, rtol=0)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("12 + 34 = 46<|im_end|>")["input_ids"] == tokens[0].tolist()
    assert again.chat_template == tokenizer.chat_template
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["pad_token_id"] != config["eos_token_id"]
    assert config["dtype"] == "float32"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.gguf|could be loaded"):
        build_policy(PolicySpec(source=str(tmp_path), gguf_file="absent.gguf"))


def train_one_step(policy: torch.nn.Module, tokens: torch.Tensor) -> None:
    """One step of SGD on the likelihood of all tokens but the first."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    scored = action_logits(policy.train(), tokens, mask)
    loss = torch.nn.functional.cross_entropy(scored.logits.flatten(0, 1), scored.tokens.flatten())
    loss.backward()
    torch.optim.SGD(policy.parameters(), lr=0.5).step()


def write_gguf(path: Path) -> LlamaForCausalLM:
    """Write a random Llama the way llama.cpp keeps one; returns it with the weights that quantisation left."""
    tokens = [*CONTROL, *byte_alphabet(), "12", "34"]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            # Away from the small values of initialisation, so that logits tell a permuted weight from a right one.
            weight.add_(0.1 * torch.randn_like(weight))

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(CONTROL) + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["1 2", "3 4"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    saved = {
        name: add_tensor(writer, name, value) for name, value in model.state_dict().items() if "lm_head" not in name
    }
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(saved, strict=False)
    return model


def add_tensor(writer: "gguf.GGUFWriter", name: str, value: torch.Tensor) -> torch.Tensor:
    """Add a weight under llama.cpp's name, matrices in Q4_1; returns what the file holds of it."""
    pairs = name.endswith(("q_proj.weight", "k_proj.weight"))
    rows = to_llama_cpp(value) if pairs else value
    if value.dim() == 1:
        writer.add_tensor(file_name(name, GGUF_NAMES), rows.numpy())
        return value
    packed = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor(file_name(name, GGUF_NAMES), packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    weights = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1))
    return from_llama_cpp(weights) if pairs else weights


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def file_name(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def to_llama_cpp(weight: torch.Tensor) -> torch.Tensor:
    """Rotary halves side by side become neighbouring pairs, head by head."""
    rows, columns = weight.shape
    return weight.reshape(HEADS, 2, rows // HEADS // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def from_llama_cpp(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.reshape(HEADS, rows // HEADS // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
