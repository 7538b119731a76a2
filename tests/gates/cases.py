"""The gates: each runs commands over configs, as a user does, and returns the numbers that they leave.

Models and data are those of the reliability tests; names of classes, options and files stand in this file alone.
"""

from collections.abc import Callable
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tests.gates.commands import Failure, dpr
from tests.gates.record import HASH, Values, below, metrics, numbers, weights
from tests.reliability.runs import callback, write_inputs
from tests.strategies.launch import ROOT
from tests.workspace import write_rows

STEPS = 6
STOPPED = 75  # exit code of `dpr fit` after SIGTERM
AUDITED = (0, 3)  # of `dpr audit`: a reward passes, none does
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.01}}
# Tiny models fit into one bucket and below one threshold, and would not be sharded.
STRATEGIES: dict[str, Any] = {
    "ddp": "ddp",
    "zero2": {"class_path": "dpr_lightning.strategies.Zero2Strategy", "init_args": {"bucket_size": 5000}},
    "zero3": {
        "class_path": "dpr_lightning.strategies.Zero3Strategy",
        "init_args": {"bucket_size": 5000, "persistence_threshold": 0},
    },
    "fsdp2": {"class_path": "dpr_lightning.strategies.Fsdp2Strategy"},
}
ESTIMATORS: dict[str, Any] = {
    "sampled": {
        # Bounds that so short a run reaches.
        "model": {
            "estimator": "reinforce",
            "credit": {"discount": 1.0, "baseline": "leave_one_out"},
            "kl": {"coefficient": 1.0},
            "clip_range": 0.005,
            "improbable_floor": 0.02,
        },
        "reward": {"form": "log_ratio"},
    },
    "all_actions": {
        "model": {
            "estimator": "all_actions",
            "credit": {"discount": 0.5, "baseline": "position"},
            "kl": {"coefficient": 0.5, "target": 0.05},
        },
        "reward": {"form": {"one_sided_centred": 1.0, "log_policy": 0.5}},
    },
}
TOY_SIZES = ["--hidden_size", "32", "--layers", "2"]
# So short an answer is learnt in a few steps: policies that score nothing would leave the statistics untested.
TOY_ROWS = {"demonstrations": 40, "prompts": 20, "development": 8, "test": 16}
TOY_TOKENS = 12
TOY_STEPS = 120
# With steps, so that the arms do not change where costs are counted in another way.
ARMS: dict[str, Any] = {
    "reference": {"policy": "step_0000030"},
    "contrast": {"optimum": {"beta": 1.0}},
    "best": {"best_of": {"candidates": 3, "reward": {"form": "one_sided"}}},
    "dft": {"train": "continued_sft", "changes": {"model.init_args.loss": "dft", "trainer.max_steps": 4}},
    "spin": {"train": "self_play", "changes": {"trainer.max_steps": 2}},
    "dpr": {"train": "dpr", "changes": {"trainer.max_steps": 3}},
}


class Runs:
    """Commands in a temporary folder, over inputs that are created where a gate needs them first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def inputs(self) -> Path:
        """A random policy, a noisy copy as reference, 40 demonstrations and 6 for validation."""
        folder = self.folder / "inputs"
        folder.mkdir()
        write_inputs(folder)
        return folder

    @cached_property
    def toy(self) -> Path:
        """Addition of two digits, modulo 3 and without a rationale, on the toy's policy."""
        folder = self.folder / "toy"
        dpr(["toy", "--output", str(folder), *TOY_SIZES], self.folder / "toy")
        rows = (
            {"prompt": f"{a} + {b} =", "completion": f"Answer: {(a + b) % 3}", "answer": str((a + b) % 3)}
            for a, b in (divmod(37 * index % 100, 10) for index in range(100))
        )
        for name, count in TOY_ROWS.items():
            write_rows(folder / "data" / f"{name}.jsonl", list(islice(rows, count)))
        return folder

    @cached_property
    def toy_policies(self) -> Path:
        """The policies of a run that imitated the toy's answers."""
        optimizer = OPTIMIZER | {"init_args": {"lr": 5e-3}}
        source, rows = {"source": str(self.toy / "base")}, self.toy / "data" / "demonstrations.jsonl"
        self.fit("toy_sft", imitation(source, "sft", rows, optimizer=optimizer), steps=TOY_STEPS)
        return self.folder / "toy_sft" / "policies"

    def fit(
        self,
        name: str,
        config: dict[str, Any],
        *,
        steps: int = STEPS,
        accumulate: int = 1,
        strategy: str = "",
        extra: list[Any] | None = None,
        code: int = 0,
    ) -> Values:
        """Train; every logged value, and the final weights.

        Args:
            name: of the run's folder; the same name once more goes on from the newest checkpoint.
            strategy: of two ranks; one process without.
            extra: further callbacks.
            code: expected exit code; other than 0 there are no results.
        """
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        trainer = {
            "max_steps": steps,
            "max_epochs": -1,
            "accumulate_grad_batches": accumulate,
            "accelerator": "cpu",
            "devices": 2 if strategy else 1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(folder),
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": str(folder), "name": "", "version": ""},
                }
            ],
            "callbacks": [
                callback("ReferenceCheckpoints", folder=str(folder / "policies"), fractions=[0.5]),
                callback("ResumableCheckpoints", folder=str(folder / "checkpoints"), every_n_steps=2),
                *(extra or []),
            ],
        }
        if strategy:
            trainer["strategy"] = STRATEGIES[strategy]
        file = folder / "config.in.yaml"
        file.write_text(yaml.safe_dump({"seed_everything": 0, **config, "trainer": trainer, "run": None}))
        dpr(["fit", "--config", str(file)], folder / "fit", ranks=2 if strategy else 1, codes=[code])
        return (
            {} if code else metrics(folder / "metrics.csv") | below("weights", weights(folder / "policies" / "final"))
        )


def imitation(policy: dict[str, Any], loss: str, rows: Path, **model: Any) -> dict[str, Any]:
    """A config of SFT, IQ-Learn or DFT."""
    return {
        "model": {
            "class_path": "dpr_lightning.modules.SupervisedIRL",
            "init_args": {"policy": policy, "loss": loss, "optimizer": OPTIMIZER, **model},
        },
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {
                "train": str(rows),
                "validation": None,
                "batch_size": 3,
                "cache_dir": str(rows.parent / "cache"),
            },
        },
    }


def reinforcement(inputs: Path, estimator: str, refresh: int) -> dict[str, Any]:
    """A config of Dense-Path REINFORCE."""
    return {
        "model": {
            "class_path": "dpr_lightning.modules.DensePathReinforce",
            "init_args": {
                "policy": {"source": str(inputs / "policy")},
                "optimizer": OPTIMIZER,
                **ESTIMATORS[estimator]["model"],
            },
        },
        "data": {
            "class_path": "dpr_lightning.data.RewardDataModule",
            "init_args": {
                "prompts": str(inputs / "rows.jsonl"),
                "held_out": str(inputs / "held.jsonl"),
                "sft": str(inputs / "policy"),
                "references": [str(inputs / "reference")],
                "reward": ESTIMATORS[estimator]["reward"],
                "sampling": {"max_new_tokens": 12},
                "samples_per_prompt": 2,
                "prompts_per_rollout": 12,
                "refresh_every": refresh,
            },
        },
    }


def self_play(inputs: Path) -> dict[str, Any]:
    """A config of SPIN."""
    return {
        "model": {
            "class_path": "dpr_lightning.modules.SelfPlay",
            "init_args": {"policy": {"source": str(inputs / "policy")}, "loss": "spin", "optimizer": OPTIMIZER},
        },
        "data": {
            "class_path": "dpr_lightning.data.SelfPlayDataModule",
            "init_args": {
                "train": str(inputs / "rows.jsonl"),
                "validation": None,
                "opponent": str(inputs / "policy"),
                "sampling": {"max_new_tokens": 12},
                "batch_size": 3,
                "cache_dir": str(inputs / "cache"),
            },
        },
    }


def initial_weights(runs: Runs) -> Values:
    """What all training begins with: where this differs, the rest does."""
    return below("policy", weights(runs.inputs / "policy")) | below("reference", weights(runs.inputs / "reference"))


def imitate(runs: Runs, loss: str = "sft", accumulate: int = 1, strategy: str = "") -> Values:
    """SFT, IQ-Learn with χ², or DFT, with validation for the first."""
    options = {"iq_learn": {"chi2_alpha": 0.5, "discount": 0.9, "chi2_warmup_steps": 3}} if loss == "iq_learn" else {}
    config = imitation({"source": str(runs.inputs / "policy")}, loss, runs.inputs / "rows.jsonl", **options)
    return runs.fit(f"{loss}_{accumulate}_{strategy}", config, accumulate=accumulate, strategy=strategy)


def reinforce(runs: Runs, estimator: str, refresh: int = 2, accumulate: int = 1, strategy: str = "") -> Values:
    """Dense-Path REINFORCE, with the reward of validation prompts in between."""
    config = reinforcement(runs.inputs, estimator, refresh)
    name = f"dpr_{estimator}_{refresh}_{accumulate}_{strategy}"
    measured = [] if strategy else [callback("HeldOutReward", every_n_steps=2)]
    return runs.fit(name, config, accumulate=accumulate, strategy=strategy, extra=measured)


def spin(runs: Runs, accumulate: int) -> Values:
    """SPIN against the initial policy."""
    return runs.fit(f"spin_{accumulate}", self_play(runs.inputs), accumulate=accumulate)


def resume(runs: Runs) -> Values:
    """DPR that is asked to stop in the middle of a step, and goes on by the same command.

    Raises:
        Failure: it ended with other weights than the run that was not stopped.
    """
    config = reinforcement(runs.inputs, "all_actions", refresh=2)
    whole = runs.fit("whole", config, accumulate=2)
    preemption = {"class_path": "tests.reliability.runs.Preemption", "init_args": {"at": 3}}
    runs.fit("stopped", config, accumulate=2, extra=[preemption], code=STOPPED)
    resumed = runs.fit("stopped", config, accumulate=2)
    if whole != resumed:
        keys = [key for key in whole if whole[key] != resumed.get(key)]
        raise Failure(f"the run that went on after a stop differs from the whole one in {keys}")
    return below("whole", whole) | {f"resumed: {HASH}": resumed[f"weights: {HASH}"]}


def preview(runs: Runs) -> Values:
    """`dpr preview` on development prompts."""
    return _before_training(runs, "preview", "--prompts", "development.jsonl", samples=8)


def audit(runs: Runs) -> Values:
    """`dpr audit` on development rows."""
    return _before_training(runs, "audit", "--demonstrations", "development.jsonl", samples=4)


def _before_training(runs: Runs, command: str, option: str, rows: str, samples: int) -> Values:
    policies, output = runs.toy_policies, runs.folder / f"{command}.json"
    models = ["--sft", str(policies / "final"), "--references", f"[{policies / f'step_{TOY_STEPS // 2:07}'}]"]
    sizes = ["--samples", str(samples), "--max_new_tokens", str(TOY_TOKENS), "--verifier", "answer"]
    data = [option, str(runs.toy / "data" / rows)]
    code = dpr([command, *models, *data, *sizes, "--output", str(output)], runs.folder / command, codes=AUDITED)
    return {"exit code": code} | numbers(output)


def compare(runs: Runs) -> Values:
    """`dpr compare` of arms of every kind over two seeds, by the packaged recipes with short answers."""
    folder = runs.folder / "compare"
    folder.mkdir()
    config: dict[str, Any] = {
        "data": str(runs.toy),
        "output": str(folder / "results"),
        "arms": ARMS,
        "seeds": [1, 2],
        "samples": 2,
    }
    config |= {"sft_steps": TOY_STEPS, "dpr_steps": 3, "preview_samples": 4, "preview_prompts": 8}
    for recipe in ("sft", "dpr", "self_play"):
        content = yaml.safe_load((ROOT / "configs" / "toy" / f"{recipe}.yaml").read_text())
        if "sampling" in content["data"]["init_args"]:
            content["data"]["init_args"]["sampling"]["max_new_tokens"] = TOY_TOKENS
        config[recipe] = str(folder / f"{recipe}.yaml")
        Path(config[recipe]).write_text(yaml.safe_dump(content))
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(config))
    dpr(["compare", "--config", str(file)], folder / "compare")
    return numbers(folder / "results" / "compare.json")


GATES: dict[str, Callable[[Runs], Values]] = {
    "initial_weights": initial_weights,
    **{
        f"{loss}_accumulate{accumulate}": partial(imitate, loss=loss, accumulate=accumulate)
        for loss in ("sft", "iq_learn", "dft")
        for accumulate in (1, 3)
    },
    **{f"spin_accumulate{accumulate}": partial(spin, accumulate=accumulate) for accumulate in (1, 3)},
    **{
        f"dpr_{estimator}_refresh{refresh}_accumulate{accumulate}": partial(
            reinforce, estimator=estimator, refresh=refresh, accumulate=accumulate
        )
        for estimator in ESTIMATORS
        for refresh in (1, 2)
        for accumulate in (1, 3)
    },
    "resume": resume,
    "preview": preview,
    "audit": audit,
    "compare": compare,
    **{f"{strategy}_sft": partial(imitate, strategy=strategy) for strategy in STRATEGIES},
    **{f"{strategy}_dpr": partial(reinforce, estimator="all_actions", strategy=strategy) for strategy in STRATEGIES},
}
"""Every gate, by its name."""
