"""What layers that keep less for the backward pass save: peak memory and time of a pass, with and without them in turn.

python benchmarks/lean_layers.py
"""

import resource
import statistics
import subprocess
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpr_lightning.policies import acted_loss
from dpr_lightning.policies.lean_layers import keep_less

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
ROWS, LENGTH, PASSES = 4, 256, 3


def measure(side: str) -> str:
    """Forward and backward pass of rows whose second half is learnt, float32, one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMOLLM2_135M)).train()
    if side == "lean":
        keep_less(model)
    tokens = torch.randint(0, SMOLLM2_135M["vocab_size"], (ROWS, LENGTH))
    mask = torch.arange(LENGTH).expand(ROWS, -1) >= LENGTH // 2
    before, seconds = _peak(), []
    for _ in range(PASSES):
        started = time.process_time()
        acted_loss(model, tokens, mask, lambda logprob, _: -logprob.mean()).loss.backward()
        seconds.append(time.process_time() - started)
    return f"{side}: {_peak():,.0f} MB, {before:,.0f} before; {statistics.median(seconds):.1f} CPU s"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
    else:
        for side in ("own", "lean", "own", "lean"):
            subprocess.run([sys.executable, __file__, side], check=True)
