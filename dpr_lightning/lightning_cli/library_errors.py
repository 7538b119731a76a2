"""Errors that other libraries raise because of an option, as one sentence that names the option and the remedy."""

import inspect
import pydoc
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import StrategyRegistry

from dpr_lightning.lightning_cli.origins import frames_of, origin

LIMIT = 400
"""Number of characters of a library's message that are repeated."""


class Refusal(NamedTuple):
    """A message of a library, and its remedy.

    Args:
        library: top-level module that raises it; empty: any.
        pattern: of the message; its groups may occur in ``remedy`` as ``{0}``.
        option: that causes it; empty: the option whose class raised it.
        remedy: what to do.
    """

    library: str
    pattern: str
    option: str
    remedy: str


REFUSALS = (
    Refusal(
        "lightning",
        r"Neither `tensorboard` nor `tensorboardX`",
        "",
        "Run `pip install tensorboard`, or choose another logger, such as lightning.pytorch.loggers.CSVLogger.",
    ),
    Refusal(
        "lightning",
        r"must have DeepSpeed installed",
        "trainer.strategy",
        "Run `pip install deepspeed`, or choose another strategy, such as `ddp`.",
    ),
    Refusal(
        "lightning",
        r"DeepSpeed strategy is only supported on CUDA",
        "trainer.strategy",
        "Without a GPU take `ddp`, or an overlay such as configs/strategy/zero2.yaml.",
    ),
    Refusal(
        "lightning",
        r"No supported gpu backend|No CUDA GPUs|MisconfigurationException.*accelerator",
        "trainer.accelerator",
        "This machine has no GPU that PyTorch can use: set it to `cpu` or `auto`.",
    ),
    Refusal(
        "lightning",
        r"You requested gpu: (.*?)\s*But your machine only has: (\[.*?\])",
        "trainer.devices",
        "This machine has the GPUs {1}: lower `trainer.devices`, or set it to `auto`.",
    ),
    Refusal(
        "lightning",
        r"learning rate finder",
        "trainer.callbacks",
        "Leave LearningRateFinder out and set `model.optimizer.init_args.lr`: the optimizer is created from that.",
    ),
    Refusal(
        "lightning",
        r"enable_checkpointing=False",
        "trainer.enable_checkpointing",
        "Set it to true, or leave out the callbacks that save checkpoints, such as ResumableCheckpoints.",
    ),
    Refusal("lightning", r"Timer\(duration=", "trainer.max_time", "An hour and a half is 00:01:30:00."),
    Refusal(
        "lightning", r"Requirement '(transformer.engine.*?)' not met", "trainer.precision", "Run `pip install '{0}'`."
    ),
    Refusal("", r"Requirement '(.+?)' not met", "", "Run `pip install '{0}'`."),
    Refusal("", r"(?i)No module named '([\w]+)", "", "Run `pip install {0}`, or leave out what needs it."),
)


def refusal(error: BaseException, config: Mapping[str, Any], *, of_options: bool = False) -> str | None:
    """One sentence or two, where a library refuses the value of an option; None for any other error.

    Args:
        error: with its traceback.
        config: of the command, resolved: classes that it names are searched on the traceback.
        of_options: whether the error was raised while classes were created from options.
    """
    owner, library, raised, _ = origin(error)
    if owner != "library":
        return None
    message = _short(raised)
    key = _key_of_class(raised, config)
    for rule in REFUSALS:
        match = re.search(rule.pattern, str(raised), re.DOTALL)
        if match and rule.library in ("", library) and (rule.library or isinstance(raised, ImportError)):
            return f"{_prefix(rule.option or key)}{message} {rule.remedy.format(*match.groups())}"
    if match := re.search(r"invalid strategy name: `strategy='(.+?)'`", message):
        if "." in match[1]:
            return "trainer.strategy: a class is named by `--trainer.strategy.class_path`, or `class_path` in a config."
        return f"trainer.strategy: there is no strategy {match[1]!r}.{_near_strategy(match[1])}"
    named = _trainer_options(message) if library in ("lightning", "pytorch_lightning") else []
    if named and not key:
        return f"{_prefix(', '.join(named))}{message}"
    if key and isinstance(raised, (ValueError, TypeError, AttributeError, ImportError, MisconfigurationException)):
        return f"{_prefix(key)}{message}"
    if isinstance(raised, MisconfigurationException) or of_options:
        return f"{library} refuses these options: {message}"
    return None


def _prefix(option: str) -> str:
    return f"{option}: " if option else ""


def _short(error: BaseException) -> str:
    """The message in one line, closed by a full stop."""
    text = " ".join(re.sub(r"Requirement '.*?' not met\. HINT:.*", "", str(error), flags=re.DOTALL).split())
    text = text or " ".join(str(error).split("HINT")[0].split()) or type(error).__name__
    text = text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"
    return text if text.endswith((".", "!", "…")) else text + "."


def _trainer_options(message: str) -> list[str]:
    """The trainer's options that a message of Lightning names in backticks."""
    options = inspect.signature(Trainer).parameters
    words = [word for quoted in re.findall(r"`([^`]+)`", message) for word in re.findall(r"\w+", quoted)]
    return [f"trainer.{word}" for word in dict.fromkeys(words) if word in options]


def _near_strategy(name: str) -> str:
    names = [*StrategyRegistry.available_strategies(), "auto"]
    near = get_close_matches(name, names, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{meant} Some are auto, ddp, fsdp and deepspeed_stage_2; overlays are in configs/strategy/."


def _key_of_class(error: BaseException, config: Mapping[str, Any]) -> str:
    """The option whose class raised the error: the deepest object on the traceback that the config names."""
    keys = {pydoc.locate(class_path): key for class_path, key in _classes("", config)}
    owners = [type(frame.f_locals.get("self")) for frame in frames_of(error)]
    return next((keys[owner] for owner in reversed(owners) if owner in keys), "")


def _classes(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every ``class_path`` in a config, with the option that has it."""
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"], key
        for name, inner in value.items():
            yield from _classes(key if name == "init_args" else f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _classes(key, inner)
