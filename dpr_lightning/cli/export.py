"""``dpr export``: a policy as a plain Hugging Face folder that needs nothing of this package."""

from dpr_lightning.cli.loading import console
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, save_policy


def export(
    source: str,
    output: str,
    checkpoint: str | None = None,
    gguf_file: str | None = None,
    tokenizer: str | None = None,
    lora: LoraSpec | None = None,
    dtype: str = "float32",
) -> None:
    """Write a full model and its tokenizer; adapters are merged.

    Args:
        source: folder or hub id of the policy, or of the base of ``checkpoint``.
        output: folder to write.
        checkpoint: Lightning .ckpt file or adapter folder whose weights to take.
        gguf_file: name of the GGUF file in ``source``.
        tokenizer: folder or hub id, when it is not in ``source``.
        lora: the adapter's shape, when ``checkpoint`` is a .ckpt of a LoRA run.
        dtype: of the written weights.
    """
    spec = PolicySpec(
        source=source,
        checkpoint=checkpoint,
        gguf_file=gguf_file,
        tokenizer=tokenizer,
        lora=lora,
        dtype=dtype,  # type: ignore[arg-type]
    )
    model, words = build_policy(spec)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()  # type: ignore[operator]
    save_policy(model, words, output, spec)
    console.print(f"Written: {output}")
