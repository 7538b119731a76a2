"""Time and peak memory of scoring and of learning, with and without layers that recompute activations, in turn.

python benchmarks/lean_layers.py
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpr_lightning.engine import acted_logprobs, acted_loss
from dpr_lightning.engine.recompute import recompute_activations

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
ROWS, LENGTH, PASSES = 4, 256, 5


def measure(side: str) -> str:
    """Score the second half of rows without gradients, then learn from it: a forward and backward pass."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMOLLM2_135M)).train()
    if side == "lean":
        recompute_activations(model)
    tokens = torch.randint(0, SMOLLM2_135M["vocab_size"], (ROWS, LENGTH))
    mask = torch.arange(LENGTH).expand(ROWS, -1) >= LENGTH // 2
    before = _peak()
    scoring = _seconds(lambda: acted_logprobs(model, tokens, mask))
    scored = _peak()
    learning = _seconds(lambda: acted_loss(model, tokens, mask, lambda logprob, _: -logprob.mean()).loss.backward())
    result = {"scoring": (scoring, scored), "learning": (learning, _peak())}
    cells = [f"{what} {seconds:.2f} CPU s, peak {peak:,.0f} MB" for what, (seconds, peak) in result.items()]
    return f"{side}: {before:,.0f} MB before; {'; '.join(cells)}"


def _seconds(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(PASSES):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
    else:
        for side in ("library", "lean", "library", "lean"):
            subprocess.run([sys.executable, __file__, side], check=True)
