"""Rows of word embeddings for tokens that were added: an adapter was trained with them, but its base lacks them."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from dpr_lightning.errors import InputError

PREFIX = "base_model.model."


def add_embedding_rows(model: nn.Module, folder: Path) -> None:
    """Add the rows with which the adapter in ``folder`` was trained to ``model``; called before the adapter is loaded.

    Raises:
        InputError: the adapter's file lacks the values of the rows that it added.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    shapes = tensor_shapes(folder / "adapter_model.safetensors")
    rows = max((shape[0] for name, shape in shapes.items() if _is_embedding(model, name)), default=0)
    tokens = config.get("trainable_token_indices") or (
        config.get("token_indices") if config["peft_type"] == "TRAINABLE_TOKENS" else None
    )
    for indices in tokens.values() if isinstance(tokens, dict) else [tokens or []]:
        rows = max(rows, *(index + 1 for index in indices), 0)
    base: Any = model
    before = int(base.get_input_embeddings().num_embeddings)
    if rows <= before:
        return
    base.resize_token_embeddings(rows, mean_resizing=False)
    base.tie_weights()
    head = base.get_output_embeddings()
    if head is None or head.weight is base.get_input_embeddings().weight:
        return
    name = next(name for name, module in base.named_modules() if module is head)
    if not any(key.startswith(f"{PREFIX}{name}.") and shape[0] == rows for key, shape in shapes.items()):
        raise InputError(
            f"The adapter in {str(folder)!r} was trained with {rows} tokens and its base has {before}; its file has no "
            f"values for the rows of {name!r} that were added. Save it with `save_embedding_layers=True`."
        )


def _is_embedding(model: Any, name: str) -> bool:
    layers = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = [name for name, module in model.named_modules() if id(module) in layers]
    return any(name in (f"{PREFIX}{layer}.weight", f"{PREFIX}{layer}.base_layer.weight") for layer in names)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name; empty where there is no such file."""
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
