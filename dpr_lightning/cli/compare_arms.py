"""The arms of ``dpr compare``: how each becomes a policy, for one seed; what is finished is never made again."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from dpr_lightning.cli.arms import Arm, ArmResult, evaluate_arms
from dpr_lightning.cli.loading import console, frozen_policy, verifier_named
from dpr_lightning.cli.stage_configs import continued_config, move_paths, passes_of_a_step, stage_config, write_config
from dpr_lightning.cli.stages import VERIFIER, fit
from dpr_lightning.data import PromptSet
from dpr_lightning.errors import InputError
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.extrapolation import extrapolate_weights
from dpr_lightning.rewards import RewardSpec, decode_time_optimum
from dpr_lightning.rewards.cache import content_hash
from dpr_lightning.rollouts import Combine, only


@dataclass
class Optimum:
    """The decode-time optimum of ``reward`` at ``beta``, nats of reward per nat of KL."""

    beta: float
    reward: RewardSpec = field(default_factory=RewardSpec)


@dataclass
class ArmSpec:
    """One arm; with everything left out it is π_SFT.

    Args:
        train: ``dpr`` trains Dense-Path REINFORCE, ``continued_sft`` goes on imitating; None trains nothing.
        changes: dotted places in the config of that training and their values, such as
            ``model.init_args.credit.discount: 1.0``.
        policy: without training: ``sft``, or the name of a kept checkpoint such as ``step_0000100``.
        temperature: of the samples.
        references: checkpoints that ``optimum``, ``extrapolate`` and the reward of ``dpr`` take; None: the config's.
        optimum: answers are drawn from π·exp(r/β), where DPR with this reward is heading at γ = 0.
        extrapolate: w of θ + w·(θ − θ_ref).
    """

    train: Literal["dpr", "continued_sft"] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    policy: str = "sft"
    temperature: float = 1.0
    references: list[str] | None = None
    optimum: Optimum | None = None
    extrapolate: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would be ignored."""
        if self.changes and self.train is None:
            raise InputError("`changes` are to the config of a training: they take `train`.")
        if self.train is not None and self.policy != "sft":
            raise InputError("Training starts from π_SFT: leave `policy` out where there is `train`.")
        takes_references = self.train == "dpr" or self.optimum is not None or self.extrapolate is not None
        if self.references is not None and not (self.references and takes_references):
            raise InputError(
                f"`references` is {self.references}: it names checkpoints, and only for `train: dpr`, `optimum` and "
                "`extrapolate`. Leave it out to take those of the DPR config."
            )
        if self.extrapolate is not None and self.references is not None and len(self.references) > 1:
            raise InputError("Weights are extrapolated away from one reference.")


@dataclass(frozen=True)
class Evaluation:
    """How every arm is asked: answers of at most ``max_new_tokens``, ``samples`` a prompt beside the greedy one."""

    max_new_tokens: int
    samples: int
    seed: int


class SeedRun:
    """All arms of one seed, in one folder that holds ``base/`` and ``data/``."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        sft: str,
        dpr: str,
        home: str,
        sft_steps: int | None,
        dpr_steps: int | None,
        samples: int,
    ) -> None:
        """Train π_SFT where it is not there yet.

        Args:
            folder: of this seed.
            seed: of weights, order and samples.
            sft: packaged config of SFT.
            dpr: packaged config of DPR.
            home: folder that the packaged configs' paths begin with.
            sft_steps: optimizer steps; None takes the config's.
            dpr_steps: optimizer steps of DPR as its config has it; the other arms get as many forward passes.
            samples: answers a prompt.
        """
        self.folder, self.seed = folder, seed
        self.sft_config = stage_config(sft, home, folder, seed, {"trainer.max_steps": sft_steps})
        self.policies = folder / "sft" / "policies"
        self.sft_key = self._stage(self.sft_config, folder / "sft", content_hash(folder / "data"))
        self.dpr_config = stage_config(dpr, home, folder, seed, {"trainer.max_steps": dpr_steps})
        config = yaml.safe_load(self.dpr_config.read_text(encoding="utf-8"))
        self.budget = passes_of_a_step(config) * config["trainer"]["max_steps"]
        self.references = [Path(folder).name for folder in config["data"]["init_args"]["references"]]
        answer_length = int(config["data"]["init_args"]["sampling"]["max_new_tokens"])
        self.evaluation = Evaluation(answer_length, samples, seed + 7919)
        self._sft: nn.Module | None = None

    def result(self, name: str, arm: ArmSpec) -> dict[str, Any]:
        """Scores of an arm by prompt, made where they are not there yet."""
        started = time.monotonic()
        references = [self._kept(place) for place in arm.references or self.references]
        folder, key = self._policy(name, arm)
        asked = [asdict(arm), asdict(self.evaluation), [reference.name for reference in references]]
        wanted = _key(key, json.dumps(asked, sort_keys=True))
        path = self.folder / "results" / f"{name}.json"
        if path.is_file() and (held := json.loads(path.read_text(encoding="utf-8")))["key"] == wanted:
            return dict(held)
        found = self._evaluate(folder, arm, references)
        held = {
            "key": wanted,
            **found.summary(),
            "by_prompt": {measure: found.by_prompt(measure).tolist() for measure in ("greedy", "sampled")},
            "seconds": round(time.monotonic() - started, 1),
        }
        _write_json(path, held)
        line = f"greedy {held['greedy']:.3f}, sampled {held['sampled']:.3f}, {held['seconds']:.0f} s"
        console.print(f"seed {self.seed} · {name}: {line}", highlight=False)
        return held

    def _policy(self, name: str, arm: ArmSpec) -> tuple[Path, str]:
        """The folder of the policy that an arm asks, and the key of how it came to be."""
        if arm.train is None:
            place = "final" if arm.policy == "sft" else arm.policy
            return self._kept(place), _key(self.sft_key, place)
        config = self._dpr_config(name, arm) if arm.train == "dpr" else self._continued_config(name, arm)
        stage = self.folder / "arms" / name
        return stage / "policies" / "final", self._stage(config, stage, self.sft_key)

    def _dpr_config(self, name: str, arm: ArmSpec) -> Path:
        """The DPR config with the arm's changes, and as many steps as the budget pays for."""
        config = yaml.safe_load(self.dpr_config.read_text(encoding="utf-8"))
        if arm.references is not None:
            config["data"]["init_args"]["references"] = [str(self._kept(place)) for place in arm.references]
        self._change(config, arm, name)
        return self._moved(config, f"{self.folder}/dpr", name)

    def _continued_config(self, name: str, arm: ArmSpec) -> Path:
        path = continued_config(self.folder, self.seed, self.sft_config, self.policies / "final", steps=1)
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        self._change(config, arm, name)
        return self._moved(config, f"{self.folder}/continued_sft", name)

    def _change(self, config: dict[str, Any], arm: ArmSpec, name: str) -> None:
        """Apply the arm's changes, then take as many steps as the budget pays for, unless the changes say how many."""
        _apply(config, arm.changes, name)
        if "trainer.max_steps" not in arm.changes:
            config["trainer"]["max_steps"] = max(1, round(self.budget / passes_of_a_step(config)))

    def _moved(self, config: dict[str, Any], home: str, name: str) -> Path:
        return write_config(move_paths(config, home, f"{self.folder}/arms/{name}"), self.folder, f"arm_{name}")

    def _stage(self, config: Path, folder: Path, before: str) -> str:
        """Train unless the very same training is finished; a training that was cut short begins again."""
        key = _key(before, config.read_text(encoding="utf-8"))
        done = folder / "done.json"
        if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != {"key": key}:
            if folder.exists():
                shutil.rmtree(folder)
            fit(config)
            _write_json(done, {"key": key})
        return key

    def _kept(self, name: str) -> Path:
        folder = self.policies / name
        if not folder.is_dir():
            held = ", ".join(sorted(path.name for path in self.policies.iterdir() if path.is_dir()))
            raise InputError(f"The SFT run kept no checkpoint {name!r}; it has: {held}.")
        return folder

    def _evaluate(self, folder: Path, arm: ArmSpec, references: list[Path]) -> ArmResult:
        if self._sft is None:
            self._sft = frozen_policy(str(self.policies / "final"))[0]
        models = [frozen_policy(str(folder))[0]]
        if arm.extrapolate is not None:
            extrapolate_weights(models[0], frozen_policy(str(references[0]))[0], arm.extrapolate)
        combine: Combine = only
        if arm.optimum is not None:
            models += [frozen_policy(str(folder))[0] for folder in references]
            combine = decode_time_optimum(arm.optimum.reward, arm.optimum.beta)
        tokenizer = load_tokenizer(str(self.policies / "final"))
        verifier = verifier_named(VERIFIER)
        assert verifier is not None
        asked = Arm(tuple(models), arm.temperature, combine)
        prompts = PromptSet.load(str(self.folder / "data" / "test.jsonl"), tokenizer)
        found = evaluate_arms({"arm": asked}, tokenizer, prompts, verifier, sft=self._sft, **asdict(self.evaluation))
        return found["arm"]


def _apply(config: dict[str, Any], changes: Mapping[str, Any], arm: str) -> None:
    for place, value in changes.items():
        *owners, key = place.split(".")
        target: Any = config
        for owner in owners:
            target = target.get(owner) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise InputError(f"Arm {arm!r} changes {place!r}, and its config holds no options in {owner!r} there.")
        target[key] = value


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_json(path: Path, held: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(held) + "\n", encoding="utf-8")
    unfinished.replace(path)
