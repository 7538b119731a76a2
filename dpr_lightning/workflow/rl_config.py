"""The config of `dpr rl`: Dense-Path REINFORCE of a run's policy on the reward that its SFT left behind."""

from dataclasses import asdict, dataclass
from typing import Any

from dpr_lightning.check_result import CheckResult
from dpr_lightning.data import Rows
from dpr_lightning.errors import InputError
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.run_manifest import MANIFEST, RunManifest
from dpr_lightning.workflow.config_settings import Config

RL = "rl"
BETA = 0.25
OF_THE_BASE = ("source", "architecture", "tokenizer", "gguf_file", "revision", "checkpoint")
"""Options of a policy that say where SFT took it from."""


@dataclass(frozen=True)
class RlOptions:
    """Options of `dpr rl`.

    Attributes:
        prompts: rows to learn on; None: the demonstrations' prompts, those held out aside.
        columns: the file's own names of our columns, of ``prompts``.
        steps: optimizer steps.
        learning_rate: None: 1e-5, and 3e-4 for adapters.
        beta: nats of reward per nat of KL; None: that of the check, else 0.25.
        max_new_tokens: length limit of an answer; None: the longest of the demonstrations.
        prompts_per_step: prompts of one rollout, each answered once.
        verifier: of the samples that are saved; no part of the reward. None: that of the run.
        seed: of samples and order.
    """

    prompts: Rows | None = None
    columns: dict[str, str] | None = None
    steps: int = 40
    learning_rate: float | None = None
    beta: float | None = None
    max_new_tokens: int | None = None
    prompts_per_step: int = 16
    verifier: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1 or self.prompts_per_step < 1:
            raise InputError("`--steps` and `--prompts_per_step` are at least 1.")


def rl_config(manifest: RunManifest, check: CheckResult | None, options: RlOptions) -> tuple[Config, list[str]]:
    """The config of `dpr fit`, and a line on each choice that depends on the run.

    Raises:
        InputError: the run lacks π_SFT or references.
    """
    reference = manifest.reference if check is None else check.reference_in(manifest)
    reward = check.reward if check is not None and check.reward is not None else asdict(RewardSpec.recommended())
    checked = check.beta if check is not None else None
    beta = options.beta if options.beta is not None else checked if checked is not None else BETA
    policy: Config = {"source": manifest.sft}
    policy |= {name: value for name, value in manifest.policy_options.items() if name not in OF_THE_BASE}
    adapters = policy.get("lora") is not None
    rate = options.learning_rate if options.learning_rate is not None else 3e-4 if adapters else 1e-5
    from_sft = options.prompts is None
    columns = manifest.columns if from_sft else options.columns
    held_out = manifest.held_out if columns == manifest.columns else None
    data: Config = {
        "prompts": manifest.train if from_sft else options.prompts,
        "columns": columns,
        "exclude": held_out if from_sft else None,
        "held_out": held_out,
        "sft": manifest.sft,
        "references": [reference],
        "reward": _changed(reward),
        "sampling": {
            "max_new_tokens": options.max_new_tokens or manifest.longest_demonstration or 256,
            "batch_size": 64,
        },
        "samples_per_prompt": 1,
        "prompts_per_rollout": options.prompts_per_step,
        "over_length": "drop",
        "dtype": policy.get("dtype", "float32"),
        "seed": options.seed,
    }
    config: Config = {
        "seed_everything": options.seed,
        "model": {
            "class_path": "dpr_lightning.modules.DensePathReinforce",
            "init_args": {
                "policy": policy,
                "estimator": "all_actions",
                "credit": {"discount": 0.0, "baseline": "position"},
                "kl": {"coefficient": beta},
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    # Small gradients of adapters would be scaled up by a smaller epsilon.
                    "init_args": {"lr": rate, "betas": [0.9, 0.95], "eps": 1e-5 if adapters else 1e-8,
                                  "weight_decay": 0.0},
                },
                "schedule": {"kind": "linear", "warmup_fraction": 0.1},
                "seed": options.seed,
            },
        },
        "data": {
            "class_path": "dpr_lightning.data.RewardDataModule",
            "init_args": {name: value for name, value in data.items() if value is not None},
        },
        "trainer": {
            "max_steps": options.steps,
            "accelerator": "auto",
            "devices": 1,
            "precision": "32-true",
            "accumulate_grad_batches": 2 if options.prompts_per_step % 2 == 0 else 1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "default_root_dir": str(manifest.folder / RL),
        },
        "run": {
            "manifest": str(manifest.folder / MANIFEST),
            "verifier": options.verifier or manifest.verifier,
            "samples_every_n_rollouts": 10,
        },
    }  # fmt: skip
    lines = [
        f"Reward {_changed(reward).get('form', 'log_ratio')} against {reference}, β {beta:g}, {options.steps} steps."
    ]
    return config, lines


def _changed(reward: dict[str, Any]) -> dict[str, Any]:
    """The options of a reward that are not those by default."""
    default = asdict(RewardSpec())
    return {name: value for name, value in reward.items() if value != default[name]}
