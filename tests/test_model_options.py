"""Options of models' configurations are read under one name, whatever a family calls them."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from dpr_lightning.model_options import ModelOptions
from dpr_lightning.partitioned_weights import shard_of, whole_numel, whole_shape


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("mixtral", {"num_local_experts": 4, "max_position_embeddings": 64}, {"experts": 4, "positions": 64}),
        ("qwen3_moe", {"num_experts": 6}, {"experts": 6, "is_mixture": True}),
        ("deepseek_v3", {"n_routed_experts": 8}, {"experts": 8}),
        ("doge", {"is_moe": False, "num_experts": 16}, {"experts": 0, "is_mixture": False}),
        ("gpt2", {"n_positions": 32}, {"experts": 0, "positions": 32}),
        ("llama", {"eos_token_id": [2, 7], "pad_token_id": 0}, {"stops": [2, 7], "pad": 0, "remote_classes": {}}),
        ("llama", {"eos_token_id": 2, "pad_token_id": None}, {"stops": [2], "pad": None, "is_decoder": None}),
        ("bert", {"is_decoder": True}, {"is_decoder": True}),
        ("bert", {}, {"is_decoder": False}),
        ("mixtral", {"output_router_logits": True, "router_aux_loss_coef": 0.5}, {"router_coefficient": 0.5}),
        ("mixtral", {"output_router_logits": False, "router_aux_loss_coef": 0.5}, {"router_coefficient": 0.0}),
        ("gemma3", {"text_config": {"max_position_embeddings": 48}}, {"positions": 48}),
    ],
)
def test_each_family_has_its_names(kind: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    options = ModelOptions.of_text(AutoConfig.for_model(kind, **fields))
    assert {name: getattr(options, name) for name in expected} == expected


def test_a_partitioned_weight_has_its_whole_size_and_its_shard() -> None:
    pytest.importorskip("deepspeed")
    weight: Any = torch.nn.Parameter(torch.empty(0))
    assert (whole_numel(weight), whole_shape(weight), shard_of(weight) is weight) == (0, (0,), True)
    weight.ds_id, weight.ds_numel, weight.ds_shape = 3, 12, torch.Size([4, 3])
    weight.ds_tensor = torch.arange(6.0)
    assert (whole_numel(weight), whole_shape(weight)) == (12, (4, 3))
    assert shard_of(weight) is weight.ds_tensor
