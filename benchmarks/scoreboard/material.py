"""The models, the tokenizer and the rows that all sides of the scoreboard read."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.scoreboard.workloads import Shape, Workload

POLICIES = ("sft", "reference")


def write_material(folder: Path, shape: Shape, workloads: Mapping[str, Workload], steps: int) -> None:
    """Random weights of ``shape`` (two policies that differ a little), a word a token, and rows for ``steps`` steps."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, shape.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    library_tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    for name in POLICIES:
        model.save_pretrained(folder / name)
        library_tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=1e-3)
    for name, work in workloads.items():
        work.write(folder / f"{name}.json")
        draw = random.Random(0)
        count = work.rows // work.samples * steps

        def text(words: int, draw: random.Random = draw) -> str:
            return " ".join(f"w{draw.randrange(2, shape.vocabulary)}" for _ in range(words))

        # The last token of a completion is the end of sequence.
        rows = [{"prompt": text(work.prompt), "completion": " " + text(work.completion - 1)} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
