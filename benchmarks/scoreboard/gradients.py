"""Gradients of one step on disk, and their distance from those of plain float32."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_gradients(file: Path, model: Any, tokens: Tensor, mask: Tensor, loss: float) -> None:
    """The batch, its loss (nats a token) and the gradient of every weight."""
    saved = {f"grad.{name}": weight.grad.float().contiguous() for name, weight in model.named_parameters()}
    save_file({**saved, "tokens": tokens, "mask": mask}, file, metadata={"loss": json.dumps(loss)})


def compare_gradients(file: Path, policy: Path) -> dict[str, float]:
    """Distance of the loss in nats a token, and cosine of the gradient, from autograd in float32 on the same batch.

    One row at a time: logits of a whole batch may not fit into memory.
    """
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    with safe_open(file, "pt") as opened:
        loss = float(json.loads(opened.metadata()["loss"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saved = load_file(file, device)
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).to(device)
    exact, acted_tokens = 0.0, saved["mask"][:, 1:].sum()
    for tokens, mask in zip(saved["tokens"], saved["mask"], strict=True):
        logprob = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        acted = logprob.gather(-1, tokens[1:, None]).squeeze(-1)[mask[1:]]
        part = -acted.sum() / acted_tokens
        part.backward()
        exact += float(part.detach())
    off = abs(loss - exact)
    inner = ours = theirs = 0.0
    for name, weight in model.named_parameters():
        result, expected = saved[f"grad.{name}"].double(), weight.grad.double()
        inner += float((result * expected).sum())
        ours += float((result * result).sum())
        theirs += float((expected * expected).sum())
    return {"loss_distance": off, "gradient_cosine": inner / (ours * theirs) ** 0.5}
