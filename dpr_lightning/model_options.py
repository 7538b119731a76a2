"""Options in the configurations of transformers' models, under one name each, whatever a family calls them."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
ROUTER_COEFFICIENT = ("router_aux_loss_coef", "aux_loss_coef")
ROUTER_LOSS = "output_router_logits"
"""Option, and argument of a forward pass, with which transformers computes a load-balancing loss."""


class ModelOptions:
    """Reads a configuration.

    Args:
        config: of a model, or of a part of one.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    @classmethod
    def of_text(cls, config: PreTrainedConfig) -> "ModelOptions":
        """The options of the part that reads text, which is all of most models."""
        return cls(config.get_text_config())

    def values(self, *names: str) -> Iterator[Any]:
        """The values of those options that the family has, None aside."""
        for name in names:
            # The configuration class of a family declares only the options that the family has.
            if (value := getattr(self.config, name, None)) is not None:
                yield value

    @property
    def is_decoder(self) -> bool | None:
        """Whether tokens attend to earlier ones alone; None for a family without that choice."""
        return next(map(bool, self.values("is_decoder")), None)

    @property
    def ties_embeddings(self) -> bool | None:
        """Whether input and output embeddings are one matrix; None for a part without that choice."""
        return next(map(bool, self.values("tie_word_embeddings")), None)

    @property
    def remote_classes(self) -> dict[str, Any]:
        """Classes in code that comes with the weights, by the auto class that loads them."""
        return next(self.values("auto_map"), {})

    @property
    def is_mixture(self) -> bool:
        """Whether a family with routed experts uses them; Doge may have none. True for every other family."""
        return all(self.values("is_moe"))

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 for a dense model."""
        return int(next(filter(None, self.values(*EXPERTS)), 0)) if self.is_mixture else 0

    @property
    def positions(self) -> int | None:
        """Tokens of the longest row; None without a limit."""
        return next((int(value) for value in self.values(*POSITIONS) if value), None)

    @property
    def layers(self) -> set[str]:
        """Kinds of the layers, such as ``full_attention``; empty where the family has one kind."""
        return {kind for kinds in self.values("layer_types", "layers_block_type") for kind in kinds}

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a layer of sliding attention sees; None without a limit."""
        return next(self.values("sliding_window"), None)

    @property
    def is_rotary(self) -> bool:
        """Whether positions are rotations, which go on past the last one."""
        return any(self.values("rope_parameters"))

    @property
    def router_coefficient(self) -> float:
        """Coefficient of the load-balancing loss where the configuration enables it, else 0."""
        enabled = any(self.values(ROUTER_LOSS))
        return next((float(value) for value in self.values(*ROUTER_COEFFICIENT)), 0.0) if enabled else 0.0

    @property
    def stops(self) -> list[int]:
        """Ids of the tokens that end a text."""
        return stops_of(next(self.values("eos_token_id"), None))

    @property
    def pad(self) -> int | None:
        """Id of the token that pads."""
        return next(self.values("pad_token_id"), None)


def stops_of(tokens: int | list[int] | None) -> list[int]:
    """Value of ``eos_token_id`` as a list."""
    return [] if tokens is None else [int(token) for token in (tokens if isinstance(tokens, list) else [tokens])]
