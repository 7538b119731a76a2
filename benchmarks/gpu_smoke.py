"""Does it run on a GPU? SFT and DPR in bf16 under four strategies, killed and resumed, and their memory as planned.

python benchmarks/gpu_smoke.py                      # on a GPU: shapes of 135M and 0.5B weights, minutes
python benchmarks/gpu_smoke.py --shapes tiny        # anywhere, to try the script itself

Weights are random. Every run is `dpr fit` in a separate process. Prints a table in Markdown and writes it to the
output folder; exits with 1 where a run failed.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from dpr_lightning.cli.main import run
from dpr_lightning.cli.plan_command import plan
from dpr_lightning.live_bytes import LiveBytes
from dpr_lightning.policies import character_tokenizer

TEXT = "0123456789 abcdefghijklmnopqrstuvwxyz +=Answer:"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "smollm2_135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "half_billion": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
STRATEGIES: dict[str, Any] = {
    "plain": "auto",
    "ddp": "ddp",
    "zero2": {"class_path": "dpr_lightning.strategies.Zero2Strategy", "init_args": {"bucket_size": 50_000_000}},
    "zero3": {"class_path": "dpr_lightning.strategies.Zero3Strategy", "init_args": {"bucket_size": 50_000_000}},
}
SFT_STEPS, DPR_STEPS, LENGTH = 8, 4, 256


def write_data(folder: Path) -> None:
    """A tokenizer and 128 rows of the maximum length, which `dpr plan` assumes."""
    character_tokenizer([TEXT]).save_pretrained(folder / "tokenizer")
    prompts = [f"{n} + {n} =" for n in range(128)]
    # Prompt, answer and EOS have the maximum length.
    rows = [{"prompt": text, "completion": ("because " * LENGTH)[: LENGTH - len(text) - 1]} for text in prompts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_config(folder: Path, run_folder: Path, stage: str, policy: dict[str, Any], strategy: Any) -> Path:
    """The config of a stage; DPR starts where the SFT run in the same folder ended."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0}}
    model: dict[str, Any] = {"policy": policy, "optimizer": optimizer}
    policies = run_folder / "sft" / "policies"
    if stage == "sft":
        data: dict[str, Any] = {"train": str(folder / "rows.jsonl"), "max_length": LENGTH, "token_budget": 16 * LENGTH}
        data |= {"cache_dir": str(folder / "cache"), "validation": None}
    else:
        model |= {"policy": {"source": str(policies / "final")}, "check_start": False}
        model |= {"credit": {"discount": 1.0, "baseline": "leave_one_out"}, "kl": {"coefficient": 1.0}}
        data = {
            "prompts": str(folder / "rows.jsonl"),
            "sft": str(policies / "final"),
            "references": [str(policies / "step_0000004")],
            "sampling": {"max_new_tokens": 64},
            "samples_per_prompt": 2,
            "prompts_per_rollout": 8,
            "max_prompt_length": 16,
        }
    names = {"sft": ("modules.SupervisedIRL", "data.DemonstrationDataModule")}
    module, source = names.get(stage, ("modules.DensePathReinforce", "data.RewardDataModule"))
    callbacks: list[dict[str, Any]] = [
        {
            "class_path": "dpr_lightning.callbacks." + name,
            "init_args": {"folder": str(run_folder / stage / part), **more},
        }
        for name, part, more in (
            ("ReferenceCheckpoints", "policies", {"fractions": [0.5]}),
            ("ResumableCheckpoints", "checkpoints", {"every_n_steps": 2}),
        )
    ]
    config = {
        "model": {"class_path": f"dpr_lightning.{module}", "init_args": model},
        "data": {"class_path": f"dpr_lightning.{source}", "init_args": data},
        "trainer": {
            "max_steps": SFT_STEPS if stage == "sft" else DPR_STEPS,
            "max_epochs": -1,
            "devices": 1,
            "strategy": strategy,
            "precision": "bf16-mixed",
            "gradient_clip_val": 1.0,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(run_folder / stage),
            "callbacks": callbacks,
        },
        "run": None,
    }
    path = run_folder / f"{stage}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def work(config: str, output: str) -> None:
    """One run, in a separate process: peak bytes of tensors, and seconds."""
    started = time.monotonic()
    if torch.cuda.is_available():
        run(["fit", "--config", config])
        peak = torch.cuda.max_memory_allocated()
    else:
        with LiveBytes() as live:
            run(["fit", "--config", config])
        peak = live.peak
    Path(output).write_text(json.dumps({"peak": peak, "seconds": time.monotonic() - started}))


def start(config: Path) -> "subprocess.Popen[bytes]":
    """Start a run; its output goes to a log file next to its config."""
    command = [sys.executable, __file__, "--work", str(config), str(config.with_suffix(".json"))]
    with config.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def resumed(folder: Path, policy: dict[str, Any], whole: Path) -> str:
    """Kill an SFT run once it has a checkpoint, run it again, and compare its policy with that of ``whole``."""
    config = write_config(folder, folder / "killed", "sft", policy, "auto")
    process = start(config)
    while process.poll() is None and not (folder / "killed/sft/checkpoints/step_0000002").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if start(config).wait() != 0:
        return "failed"
    first, second = (load_file(run / "sft/policies/final/model.safetensors") for run in (whole, folder / "killed"))
    change = max(float((first[name].float() - second[name].float()).abs().max()) for name in first)
    return "the same to the bit" if change == 0 else f"differs by {change:.1e}"


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2_135m", "half_billion"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_smoke"))
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return 0
    if options.output.exists():
        parser.error(f"{options.output} exists, and finished runs in it would not be run again: name another --output")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines = [f"{device}, torch {torch.__version__}, bf16-mixed", ""]
    lines += [
        "| shape | stage | strategy | seconds | peak, MiB | planned | planned / peak |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = False
    for shape in options.shapes:
        folder = options.output / shape
        folder.mkdir(parents=True, exist_ok=True)
        write_data(folder)
        policy = {
            "architecture": {"model_type": "llama", **SHAPES[shape]},
            "tokenizer": str(folder / "tokenizer"),
        }
        for name in options.strategies:
            for stage in ("sft", "dpr"):
                config = write_config(folder, folder / name, stage, policy, STRATEGIES[name])
                if start(config).wait() != 0:
                    lines.append(f"| {shape} | {stage} | {name} | failed: {config.with_suffix('.log')} | | | |")
                    failed = True
                    continue
                measured = json.loads(config.with_suffix(".json").read_text())
                planned = plan(["--config", str(config)]).peak
                lines.append(
                    f"| {shape} | {stage} | {name} | {measured['seconds']:.0f} | {measured['peak'] / 2**20:,.0f} "
                    f"| {planned / 2**20:,.0f} | {planned / measured['peak']:.2f} |"
                )
                print(lines[-1], flush=True)
        if "plain" in options.strategies:
            result = resumed(folder, policy, folder / "plain")
            failed |= result == "failed"
            lines.append(f"| {shape} | sft | plain, killed and resumed | {result} | | | |")
    table = "\n".join(lines) + "\n"
    (options.output / "result.md").write_text(table)
    print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
