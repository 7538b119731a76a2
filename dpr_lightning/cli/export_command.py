"""``dpr export``: a policy as a plain Hugging Face folder that loads without this package."""

from typing import Annotated

from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, has_adapters, merge_adapters, save_policy
from dpr_lightning.policies.extrapolation import extrapolate_weights
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.policies.tokenizers import same_vocabulary
from dpr_lightning.reports.console import console


def export(
    source: ReadPath,
    output: Annotated[str, Writes(whole=True)],
    checkpoint: ReadPath | None = None,
    gguf_file: str | None = None,
    tokenizer: ReadPath | None = None,
    pad_token: str | None = None,
    lora: LoraSpec | None = None,
    dtype: Dtype = "float32",
    reference: ReadPath | None = None,
    extrapolation: float = 0.0,
    check: bool = True,
) -> None:
    """Write a full model and its tokenizer; adapters are merged.

    Args:
        source: folder or hub id of the policy, or of the base of ``checkpoint``.
        output: folder to write.
        checkpoint: Lightning .ckpt file or adapter folder whose weights to take.
        gguf_file: name of the GGUF file in ``source``.
        tokenizer: folder or hub id, when it is not in ``source``.
        pad_token: token for padding, where the tokenizer names none, or one that has another meaning.
        lora: the adapter's shape, when ``checkpoint`` is a .ckpt of a LoRA run.
        dtype: of the written weights.
        reference: folder of an earlier checkpoint of the same run, to move the weights away from.
        extrapolation: w of θ + w·(θ − θ_ref).
        check: whether to compare the files with the policy in memory before they replace anything.
    """
    if (reference is None) != (extrapolation == 0.0):
        raise InputError(
            "Weights are moved by `extrapolation` away from a `reference`: give both, a folder and a number other than "
            f"0; found {reference} and {extrapolation:g}."
        )
    spec = PolicySpec(
        source=source,
        checkpoint=checkpoint,
        gguf_file=gguf_file,
        tokenizer=tokenizer,
        pad_token=pad_token,
        lora=lora,
        dtype=dtype,
    )
    model, words = build_policy(spec)
    if has_adapters(model):
        model = merge_adapters(model)
    if reference is not None:
        earlier, other_words = build_policy(PolicySpec(source=reference, dtype=dtype), trainable=False)
        difference = same_vocabulary(words, other_words)
        if difference is not None:
            raise InputError(f"The tokenizers of the policy and of {reference} differ: {difference}.")
        extrapolate_weights(model, earlier, extrapolation)
    save_policy(model, words, output, spec, check=check)
    console.print(f"Written: {output}")
