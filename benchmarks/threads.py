"""One training step of the toy policy, by how OpenMP threads wait, with other processes on the cores or without.

for policy in ACTIVE PASSIVE; do OMP_NUM_THREADS=2 OMP_WAIT_POLICY=$policy python benchmarks/threads.py; done
OMP_NUM_THREADS=1 python benchmarks/threads.py
"""

import os
import tempfile
import time

import torch

from dpr_lightning.engine import action_logits
from dpr_lightning.functional import sft_loss, token_logprobs
from dpr_lightning.policies import PolicySpec, build_policy, create_toy_policy

STEPS = 8


def main() -> None:
    """Print wall and CPU seconds of a step over 64 sequences of 60 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        create_toy_policy(folder, ["0123456789 +=,:>Answer\n"])
        policy, _ = build_policy(PolicySpec(source=folder))
    tokens = torch.randint(3, 15, (64, 60))
    mask = torch.zeros(64, 60, dtype=torch.bool)
    mask[:, 12:] = True

    def step() -> None:
        scored = action_logits(policy, tokens, mask)
        sft_loss(token_logprobs(scored.logits, scored.tokens), scored.mask, scored.mask.sum().float()).backward()
        policy.zero_grad()

    for _ in range(2):
        step()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    wall, processor = (time.perf_counter() - wall) / STEPS, (time.process_time() - processor) / STEPS
    waiting = os.environ.get("OMP_WAIT_POLICY", "unset")
    load = os.getloadavg()[0]
    print(
        f"threads {torch.get_num_threads()}, waiting {waiting}, load {load:.1f}: "
        f"{wall:.3f} s wall, {processor:.3f} s CPU a step"
    )


if __name__ == "__main__":
    main()
