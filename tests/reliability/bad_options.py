"""Wrong configs and options, with words of the error messages."""

from pathlib import Path
from typing import Any

import yaml

from tests.reliability.kit import Case, Kit

CALLBACKS = "lightning.pytorch.callbacks."


def _run_without_curves(kit: Kit) -> list[str]:
    (kit.folder / "metrics.csv").write_text("data/train/rows,step\n40,0\n")
    return ["report", "--run", str(kit.folder)]


def _same_twice(kit: Kit) -> list[str]:
    return kit.config("model:\n  class_path: dpr_lightning.modules.SupervisedIRL\nmodel: 3\n")


def _monitored(kit: Kit, callback: str, name: str) -> list[str]:
    entry = {"class_path": f"{CALLBACKS}{callback}", "init_args": {"monitor": name}}
    return kit.fit(trainer={"callbacks": [entry], "enable_checkpointing": True})


def _settings(kit: Kit, **settings: Any) -> list[str]:
    """An SFT config with other entries at its top."""
    path = Path(kit.fit()[-1])
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return ["fit", "--config", str(path)]


OPTION_CASES: dict[str, dict[str, Case]] = {
    "Configs and options": {
        "a command that is not there": Case(lambda kit: ["quickstrat"], ("quickstrat", "quickstart")),
        "no option that is needed": Case(lambda kit: ["generate"], ("policy",)),
        "a config that is not there": Case(lambda kit: ["fit", "--config", "nowhere.yaml"], ("nowhere.yaml",)),
        "a config that is no YAML": Case(lambda kit: kit.config("model: [1,"), ("run.yaml",)),
        "a config that makes Python objects": Case(
            lambda kit: kit.config("model: !!python/object/apply:os.system ['touch pwned']"), ("run.yaml",)
        ),
        "an empty config": Case(lambda kit: kit.config(""), ("run.yaml", "empty")),
        "a config that is a list": Case(lambda kit: kit.config("- model\n"), ("run.yaml", "mapping")),
        "an option twice": Case(_same_twice, ("run.yaml:3", "line 1")),
        "a misspelt option": Case(lambda kit: kit.dpr(promts_per_rollout=4), ("promts_per_rollout",)),
        "a misspelt entry": Case(lambda kit: _settings(kit, modle={"x": 1}), ("modle",)),
        "a word where a number belongs": Case(lambda kit: kit.fit(batch_size="four"), ("batch_size", "four")),
        "a class that is not there": Case(
            lambda kit: _settings(kit, model={"class_path": "dpr_lightning.modules.SupervisdIRL"}), ("SupervisdIRL",)
        ),
        "no rows in a batch": Case(lambda kit: kit.fit(batch_size=0), ("batch_size", "0")),
        "a validation share of 3": Case(lambda kit: kit.fit(validation=3.0), ("validation", "3.0")),
        "an unknown loss": Case(lambda kit: kit.fit(model={"loss": "sfft"}), ("sfft",)),
        "an unknown form of the reward": Case(lambda kit: kit.dpr(reward={"form": "log_ration"}), ("log_ration",)),
        "options that contradict each other": Case(
            lambda kit: kit.dpr(model={"estimator": "all_actions", "credit": {"level": "sentence"}}), ("all-actions",)
        ),
        "sampling that is off-policy": Case(
            lambda kit: kit.dpr(sampling={"max_new_tokens": 6, "temperature": 0.3}), ("sampler", "temperature")
        ),
        "a temperature below 0": Case(lambda kit: kit.dpr(sampling={"temperature": -1.0}), ("temperature", "-1")),
        "more prompts than there are": Case(
            lambda kit: kit.dpr(prompts_per_rollout=64), ("16 prompts", "prompts_per_rollout")
        ),
        "no reference": Case(lambda kit: kit.dpr(references=[]), ("reference",)),
        "an unknown optimizer option": Case(
            lambda kit: kit.fit(
                model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"learning_rate": 1}}}
            ),
            ("learning_rate",),
        ),
        "an unknown strategy": Case(lambda kit: kit.fit(trainer={"strategy": "deepspead"}), ("deepspead",)),
        "a GPU that is not there": Case(lambda kit: kit.fit(trainer={"accelerator": "gpu"}), ("gpu",)),
        "an unknown precision": Case(lambda kit: kit.fit(trainer={"precision": "8-mixed"}), ("8-mixed",)),
        "a misspelt option on the command line": Case(
            lambda kit: [*kit.fit(), "--trainer.max_step", "3"], ("--trainer.max_step.", "--trainer.max_steps?")
        ),
        "a misspelt option of a class": Case(
            lambda kit: [*kit.fit(), "--model.polcy.source", "x"], ("--model.polcy.source.", "--model.policy.source?")
        ),
        "a misspelt option of another command": Case(
            lambda kit: ["generate", "--policy", kit.workspace.sft, "--prompt", "x"], ("--prompt.", "--prompts?")
        ),
        "a misspelt option of a callback": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}EarlyStopping", "--trainer.callbacks.monitr=x"],
            ("trainer.callbacks", "'monitr'", "'monitor'"),
        ),
        "a callback without what it needs": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}EarlyStopping"], ("trainer.callbacks", "monitor")
        ),
        "a callback in no package": Case(
            lambda kit: [*kit.fit(), "--trainer.callbacks+=my_callbacks.Printer"], ("my_callbacks", "PYTHONPATH=FOLDER")
        ),
        "a logger that is no class": Case(
            lambda kit: [*kit.fit(), "--trainer.logger", "TensorBord"], ("trainer.logger", "'TensorBord'")
        ),
        "a strategy's class as its name": Case(
            lambda kit: [*kit.fit(), "--trainer.strategy", "dpr_lightning.strategies.Zero2Strategy"],
            ("`--trainer.strategy.class_path`",),
        ),
        "a target module that is not there": Case(
            lambda kit: kit.fit(policy={"source": kit.workspace.sft, "lora": {"target_modules": ["q_projj"]}}),
            ("model.policy.lora.target_modules", "q_projj", "q_proj,"),
        ),
        "less than one batch": Case(
            lambda kit: kit.fit(trainer={"limit_train_batches": 0.01}), ("trainer.limit_train_batches: ", "0.25")
        ),
        "no batches at all": Case(
            lambda kit: kit.fit(trainer={"limit_train_batches": 0}), ("trainer.limit_train_batches: found 0",)
        ),
        "no epochs": Case(lambda kit: kit.fit(trainer={"max_epochs": 0}), ("trainer.max_epochs: found 0",)),
        "gradients clipped to less than nothing": Case(
            lambda kit: kit.fit(trainer={"gradient_clip_val": -1.0}), ("trainer.gradient_clip_val: found -1",)
        ),
        "validation every 0 batches": Case(
            lambda kit: kit.fit(trainer={"val_check_interval": 0}), ("trainer.val_check_interval: found 0",)
        ),
        "validation every 0 epochs": Case(
            lambda kit: kit.fit(trainer={"check_val_every_n_epoch": 0}), ("trainer.check_val_every_n_epoch: found 0",)
        ),
        "a wrong value of a callback's option": Case(
            lambda kit: [
                *(*kit.fit(), "--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=hour"),
            ],
            ("trainer.callbacks.logging_interval: has to be Literal['step', 'epoch']; found hour",),
        ),
        "validation less often than there are batches": Case(
            lambda kit: kit.fit(trainer={"val_check_interval": 1000}), ("trainer.val_check_interval", "1000")
        ),
        "a run without an end": Case(
            lambda kit: kit.fit(trainer={"max_steps": -1, "max_epochs": -1}), ("`trainer.max_steps`", "no end")
        ),
        "references of a run without an end": Case(
            lambda kit: [
                *kit.fit(model={"schedule": {"total_steps": 9}}, trainer={"max_steps": -1, "max_epochs": -1}),
                *("--run.wandb=off", "--run.csv=false"),
            ],
            ("`run.references`", "no end"),
        ),
        "a negative learning rate": Case(
            lambda kit: kit.fit(model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}}),
            ("model.optimizer: ", "-1.0"),
        ),
        "a limit of time in words": Case(
            lambda kit: kit.fit(trainer={"max_time": "3 hours"}), ("trainer.max_time: ", "00:01:30:00")
        ),
        "a learning rate that is to be searched": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}LearningRateFinder"],
            ("LearningRateFinder", "`model.optimizer.init_args.lr`"),
        ),
        "a callback that needs a logger": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}LearningRateMonitor"],
            ("trainer.callbacks: ", "no logger"),
        ),
        "a monitored name that is not logged": Case(
            lambda kit: _monitored(kit, "EarlyStopping", "train/nl"), ("EarlyStopping", "'train/nl'", "'train/nll'")
        ),
        "a monitored name without validation": Case(
            lambda kit: _monitored(kit, "ModelCheckpoint", "validation/nll"), ("ModelCheckpoint", "`data.validation`")
        ),
        "a misspelt option of the run": Case(
            lambda kit: _settings(kit, run={"refrences": [0.5]}), ("run", "'refrences'", "'references'")
        ),
        "a reference after the end of the run": Case(
            lambda kit: _settings(kit, run={"references": [0.5, 1.5]}), ("`run.references`: found 1.5", "0 and 1")
        ),
        "checkpoints every -5 steps": Case(
            lambda kit: [*kit.fit(), "--run.resume_every_n_steps", "-5"],
            ("`run.resume_every_n_steps`: found -5", "null"),
        ),
        "no checkpoint that stays": Case(
            lambda kit: [*kit.fit(), "--run.keep_checkpoints=0"], ("`run.keep_checkpoints`: found 0",)
        ),
        "an unknown mode of Weights & Biases": Case(
            lambda kit: [*kit.fit(), "--run.wandb=onlin"], ("run.wandb", "'offline'", "onlin")
        ),
        "a run that is no mapping": Case(
            lambda kit: _settings(kit, run="runs/mine"), ("run: it has options, such as run.references", "runs/mine")
        ),
        "an unknown verifier of samples": Case(
            lambda kit: [*kit.dpr(), "--run.verifier=anser", "--run.wandb=off"], ("anser", "answer")
        ),
        "the best policy of a run without validation": Case(
            lambda kit: [*kit.fit(), "--run.best=true", "--run.wandb=off"],
            ("`run.best`", "no validation", "`data.validation`"),
        ),
        "the best policy of a rollout algorithm": Case(
            lambda kit: [*kit.dpr(), "--run.best=true", "--run.wandb=off"],
            ("`run.best`", "DensePathReinforce has none"),
        ),
        "an early end after no validation": Case(
            lambda kit: [*kit.fit(), "--run.early_stopping=0"], ("`run.early_stopping`: found 0", "null")
        ),
        "prompts that are all excluded": Case(
            lambda kit: kit.dpr(exclude=kit.workspace.prompts), ("`data.exclude`", "all prompts")
        ),
        "an evaluation without prompts": Case(
            lambda kit: kit.fit(
                trainer={"callbacks": [{"class_path": "dpr_lightning.callbacks.GenerationEvaluation"}]}
            ),
            ("GenerationEvaluation", "`data.validation`"),
        ),
        "a path where a list belongs": Case(
            lambda kit: [
                "rewards",
                "--sft",
                kit.workspace.sft,
                "--references",
                "early",
                "--responses",
                "p.jsonl",
                "--output",
                "out",
            ],
            ("references", "'[early]'"),
        ),
        "a run too short for curves": Case(_run_without_curves, ("metrics.csv", "`trainer.log_every_n_steps`")),
        "a folder that is no run": Case(lambda kit: ["report", "--run", str(kit.folder)], ("report.json",)),
    },
}
