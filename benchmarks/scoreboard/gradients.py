"""Gradients of one step on disk, and how near they are to those of plain float32."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_gradients(file: Path, model: Any, tokens: Tensor, mask: Tensor, loss: float) -> None:
    """The batch, its loss (nats a token) and the gradient of every weight."""
    held = {f"grad.{name}": weight.grad.float().contiguous() for name, weight in model.named_parameters()}
    save_file({**held, "tokens": tokens, "mask": mask}, file, metadata={"loss": json.dumps(loss)})


def compare_gradients(file: Path, policy: Path) -> dict[str, float]:
    """Distance of the loss in nats a token, and cosine of the gradient, from autograd in float32 on the same batch.

    A row at a time: a whole batch of logits may be more than there is room for.
    """
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    with safe_open(file, "pt") as opened:
        loss = float(json.loads(opened.metadata()["loss"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = load_file(file, device)
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).to(device)
    exact, acted_tokens = 0.0, held["mask"][:, 1:].sum()
    for tokens, mask in zip(held["tokens"], held["mask"], strict=True):
        logprob = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        acted = logprob.gather(-1, tokens[1:, None]).squeeze(-1)[mask[1:]]
        part = -acted.sum() / acted_tokens
        part.backward()
        exact += float(part.detach())
    off = abs(loss - exact)
    inner = ours = theirs = 0.0
    for name, weight in model.named_parameters():
        result, expected = held[f"grad.{name}"].double(), weight.grad.double()
        inner += float((result * expected).sum())
        ours += float((result * result).sum())
        theirs += float((expected * expected).sum())
    return {"loss_distance": off, "gradient_cosine": inner / (ours * theirs) ** 0.5}
