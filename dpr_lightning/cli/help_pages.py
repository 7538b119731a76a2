"""The pages of ``--help``: one screen a command, and more by topic. They are printed without importing PyTorch."""

import textwrap
from collections.abc import Sequence

from dpr_lightning.cli.command_table import MODULES, function_name
from dpr_lightning.cli.run_options import OPTIONS
from dpr_lightning.cli.source_help import Option, Signature, option_lines, public_classes, read_signature
from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli import LIGHTNING_COMMANDS

FLAGS = ("--help", "-h")
ALL = "all"
TOPICS = {
    "trainer": ("--trainer.", "lightning.pytorch.trainer.trainer", "Trainer"),
    "run": ("--run.", "dpr_lightning.lightning_cli.run_defaults", "RunDefaults"),
    "policy": ("--model.policy.", "dpr_lightning.policies.policy_spec", "PolicySpec"),
    "lora": ("--model.policy.lora.", "dpr_lightning.policies.policy_spec", "LoraSpec"),
    "schedule": ("--model.schedule.", "dpr_lightning.modules.schedule", "ScheduleSpec"),
    "credit": ("--model.credit.", "dpr_lightning.modules.advantages", "CreditSpec"),
    "kl": ("--model.kl.", "dpr_lightning.modules.dpr", "KLSpec"),
    "reward": ("--data.reward.", "dpr_lightning.rewards.reward_spec", "RewardSpec"),
    "sampling": ("--data.sampling.", "dpr_lightning.rollouts.sampler", "SamplingOptions"),
}
"""Prefix of the options, module and class of each section with fields."""
CLASSES: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    "model": (
        "--model.",
        "dpr_lightning.modules",
        (
            "SupervisedIRL",
            "DensePathReinforce",
            "SelfPlay",
            "VerifierHead",
            "RelativeRewardRegression",
            "HybridPreference",
        ),
    ),
    "data": (
        *("--data.", "dpr_lightning.data"),
        (
            "DemonstrationDataModule",
            "RewardDataModule",
            "SelfPlayDataModule",
            "PreferenceDataModule",
            "HybridDataModule",
        ),
    ),
    "callbacks": ("", "dpr_lightning.callbacks", None),
}
"""Prefix, package, and classes of each section that a ``class_path`` fills; None: all public ones."""
LIGHTNING_SCREEN = """usage: dpr {command} --config FILE.yaml [--OPTION VALUE ...]

{summary} A config names the algorithm (model) and the data, an option changes a value of it.

  -c, --config FILE                    YAML; several are merged in order. `configs/` has complete ones
  --print_config                       print the config with every value, and run nothing
model: dpr_lightning.modules.SupervisedIRL, DensePathReinforce, SelfPlay, VerifierHead,
       RelativeRewardRegression (REBEL), HybridPreference (HyPO)
  --model CLASS                        the algorithm
  --model.policy.source FOLDER         the model to start from: a folder or a hub id
  --model.policy.dtype bfloat16        type of its weights
  --model.policy.lora.rank 16          train adapters instead of all weights
  --model.policy.gradient_checkpointing true
                                       less memory for a third more work
  --model.optimizer.lr 1e-4            learning rate, where the config names an optimizer
data: dpr_lightning.data.DemonstrationDataModule (SFT), RewardDataModule (RL), SelfPlayDataModule,
      PreferenceDataModule (pairs: DPO, IPO), HybridDataModule (HyPO)
  --data.train FILE                    SFT: demonstrations (JSONL, Parquet, a hub name); rows of it are held
                                       out, unless --data.validation names others
  --data.max_length 1024               SFT: tokens of the longest row
  --data.prompts FILE                  RL: prompts; also --data.sft, --data.references
trainer: Lightning's
  --trainer.max_steps 1000             optimizer steps; or --trainer.max_epochs 3
  --trainer.accumulate_grad_batches 4  micro-batches of a step
  --trainer.devices 1                  and --trainer.strategy, --trainer.precision
  --trainer.default_root_dir FOLDER    where all output goes
run: what is saved and logged
  --run.references '[0.25, 0.5]'       shares of the run at which policies are saved
  --run.resume_every_n_steps 50        steps between checkpoints; the same command goes on
  --run.wandb auto                     auto, online, offline or off
others
  --seed_everything 0                  seed
  --ckpt_path none                     begin anew; without it, the newest checkpoint goes on

More: `dpr {command} --help TOPIC`. Topics:
{topics}, model.CLASS, all."""
PLAN_SCREEN = """usage: dpr plan --config FILE.yaml [--OPTION VALUE ...] [--what_helps]

The memory that `dpr fit` with the same arguments takes on each rank, counted without weights or data on any machine.

  --what_helps  print by how much each option that saves memory would lower it

All options of `dpr fit` (`dpr fit --help`)."""


def help_page(arguments: Sequence[str]) -> str | None:
    """The page that a command line requests.

    Args:
        arguments: the command first.

    Returns:
        None where none is requested, or a page that only the parser of the command has: of every option and type.

    Raises:
        InputError: there is no such topic.
    """
    command = arguments[0]
    index = next((index for index, argument in enumerate(arguments) if argument in FLAGS), None)
    if index is None or command not in (*LIGHTNING_COMMANDS, *MODULES, "plan"):
        return None
    topic = next((argument for argument in arguments[index + 1 :] if not argument.startswith("-")), None)
    if topic == ALL:
        return None
    if topic is not None:
        return _topic(command, topic)
    if command == "plan":
        return PLAN_SCREEN
    if command in LIGHTNING_COMMANDS:
        topics = ", ".join((*CLASSES, *TOPICS))
        return LIGHTNING_SCREEN.format(command=command, summary=_SUMMARIES[command], topics=topics)
    return _command(command)


def without_topic(arguments: Sequence[str]) -> list[str]:
    """The arguments for the command's own parser, which knows no topics: of ``--help all``, without ``all``."""
    requested = any(argument in FLAGS for argument in arguments[1:])
    return [arguments[0], "--help"] if requested and ALL in arguments else list(arguments)


_SUMMARIES = {
    "fit": "Train a policy.",
    "validate": "Measure on validation rows.",
    "test": "Measure on test rows.",
    "predict": "Predict each row.",
}


def _command(command: str) -> str:
    signature = read_signature(MODULES[command], function_name(command))
    required = [option for option in signature.options if option.default is None]
    optional = [option for option in signature.options if option.default is not None]
    names = " ".join(f"--{option.name} {option.name.upper()}" for option in required)
    usage = f"usage: dpr {command} {names} [--OPTION VALUE ...]".replace("  ", " ")
    lines = [*textwrap.wrap(usage, 100, subsequent_indent="    "), "", signature.summary, ""]
    if required:
        lines += ["required:", *option_lines(required), ""]
    if command in OPTIONS:
        lines += ["instead of " + ", ".join(f"--{name}" for name in OPTIONS[command]) + ":"]
        lines += [*option_lines([Option("run", None, "folder of a run, whose run.json has their values.")]), ""]
    lines += ["options, with their defaults:", *option_lines(optional), ""]
    fields = [
        f"`dpr {command} --help {name}` lists the fields of {name} (--{name}.FIELD)." for name in _specs(signature)
    ]
    lines += [
        *fields,
        f"Lists are written as in JSON; `--config FILE.yaml` sets all; `dpr {command} --help all`: types.",
    ]
    return "\n".join(lines)


def _specs(signature: Signature) -> dict[str, str]:
    """Options of a command that are specifications with fields, and the classes of these."""
    return {option.name: kind for option in signature.options for kind in option.types if kind.endswith("Spec")}


def _topic(command: str, topic: str) -> str:
    return _topic_of_function(command, topic) if command in MODULES else _topic_of_config(command, topic)


def _topic_of_function(command: str, topic: str) -> str:
    module = MODULES[command]
    specs = _specs(read_signature(module, function_name(command)))
    if topic not in specs:
        raise InputError(f"`--help` has no topic {topic!r}. Topics are {', '.join([*specs, ALL])}.")
    return _listed(read_signature(module, specs[topic]), f"--{topic}.")


def _topic_of_config(command: str, topic: str) -> str:
    section, _, name = topic.partition(".")
    if topic in TOPICS:
        prefix, module, kind = TOPICS[topic]
        return _listed(read_signature(module, kind), prefix)
    if section in CLASSES:
        prefix, package, classes = CLASSES[section]
        classes = classes or tuple(public_classes(package))
        if name in classes:
            return _listed(read_signature(package, name), prefix)
        if not name:
            summaries = [f"  {each}\n    {read_signature(package, each).summary}" for each in classes]
            more = (
                f"`dpr {command} --help {section}.CLASS` lists the options of one; its class_path is {package}.CLASS."
            )
            return "\n".join([f"Classes for {section}:", *summaries, "", more])
        known = [f"{section}.{each}" for each in classes]
    else:
        known = [*TOPICS, *CLASSES, ALL]
    yours = (
        f" `--{section}.help my_module.MyClass` lists the options of a class of yours." if section in CLASSES else ""
    )
    raise InputError(f"`--help` has no topic {topic!r}. Topics are {', '.join(known)}.{yours}")


def _listed(signature: Signature, prefix: str) -> str:
    return "\n".join([signature.summary, "", *option_lines(signature.options, prefix)])
