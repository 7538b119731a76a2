"""The specification of a policy, as in YAML."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath

AUTO: Literal["auto"] = "auto"
"""A value of ``attention``, its default, and of ``dtype``."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoraSpec:
    """Low-rank adapters on a frozen base (Hu et al. 2021).

    Args:
        rank: width of the low-rank update.
        alpha: the update is scaled by alpha / rank.
        dropout: share of adapter inputs dropped while imitating; policy-gradient training always runs without.
        target_modules: names of the linear layers that get an adapter, or ``all-linear``.
        modules_to_save: names of layers that are trained whole, and saved with the adapter, such as ``lm_head``.
        use_dora: weight-decomposed updates (Liu et al. 2024).
        use_rslora: scale the update by alpha / √rank instead (Kalajdzievski 2023).
        target_parameters: names of weights in no such layer that get one too: fused experts, as
            ``experts.gate_up_proj`` and ``experts.down_proj``.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    target_parameters: list[str] | None = None


@dataclass
class PolicySpec:
    """Specifies a policy: the sources of its architecture, weights and tokenizer, and its form in memory.

    Args:
        source: hub id or local folder with the weights; a folder written by this package may have only an adapter.
        architecture: instead of ``source``: a transformers configuration (``model_type`` and its fields) whose weights
            are initialised at random. ``vocab_size`` and the special tokens follow the tokenizer.
        tokenizer: hub id or folder of the tokenizer; None: that of ``source``.
        revision: branch, tag or commit of ``source`` on the hub.
        gguf_file: name of the GGUF file in ``source``; it is dequantised and trained like any other base.
        checkpoint: weights to start from instead of the source's: a folder written by this package (a full model, or
            an adapter of this base) or a Lightning ``.ckpt`` file.
        dtype: of the parameters. ``auto``: as those of ``source`` are saved, except float32 on a CPU without
            instructions for bfloat16.
        master_weights: for parameters in half precision, the optimizer updates float32 copies, in which small changes
            are not lost. DeepSpeed has such copies anyway; under FSDP2 use float32 as `dtype` instead and set the
            trainer's precision, in which it computes.
        attention: transformers' attention implementation. With flash attention, the rows of a micro-batch are packed
            without padding. ``auto``: the choice with which the weights of ``source`` were trained, else ``sdpa``, or
            ``eager`` where the architecture has no ``sdpa``. A choice is saved with the policy, and used by every
            later command.
        lora: train adapters instead of every parameter.
        gradient_checkpointing: recompute activations in the backward pass: 4 forward passes' work instead of 3.
        trust_remote_code: run model code that comes with ``source``.
        pad_token: pad token, saved with the policy; None: the one that the checkpoint names, or a reserved token
            where that one is EOS or has another meaning.
    """

    source: ReadPath | None = None
    architecture: dict[str, Any] | None = None
    tokenizer: ReadPath | None = None
    gguf_file: str | None = None
    revision: str | None = None
    checkpoint: ReadPath | None = None
    dtype: Dtype = "float32"
    master_weights: bool = True
    attention: str = AUTO
    lora: LoraSpec | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    pad_token: str | None = None

    def __post_init__(self) -> None:
        """Check the combination of fields, without reading any file."""
        if (self.source is None) == (self.architecture is None):
            raise InputError(
                "A policy needs exactly one of `source` (hub id or folder) and `architecture` (random weights); "
                f"found source={self.source!r}, architecture={self.architecture!r}."
            )
        if self.architecture is not None and self.tokenizer is None:
            raise InputError("A policy with random weights comes without a tokenizer: set `tokenizer` to a folder.")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise InputError("`architecture` must say its `model_type`, for example `llama`.")
        if self.architecture is not None and self.lora is not None:
            raise InputError(
                "An adapter on random weights would be of no use later: its base is saved nowhere. Train every "
                "parameter (without `lora`), or save a base first and name it as `source`."
            )
        if self.gguf_file is not None and self.source is None:
            raise InputError("`gguf_file` names a file inside `source`; set `source` to its folder.")

    @property
    def tokenizer_source(self) -> str:
        """Hub id or folder of the tokenizer."""
        source = self.tokenizer or self.source
        assert source is not None
        return source

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)
