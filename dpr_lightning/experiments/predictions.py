"""Does the cheap preview predict the expensive run? The gain that it promised each arm, and the gain of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.reward_preview import preview_reward
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.arm_specs import reward_of
from dpr_lightning.experiments.recipes import answers_of
from dpr_lightning.experiments.stages import VERIFIER
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.reports.console import progress_bar
from dpr_lightning.rewards import DenseReward


@dataclass(frozen=True)
class Promise:
    """The preview of an arm: score at the optimum, score of π_SFT's samples, whether the samples reach the optimum."""

    optimum: float
    sft: float
    reliable: bool


def promises(configs: Mapping[str, Path], prompts: Path, *, samples: int, limit: int, seed: int) -> dict[str, Promise]:
    """Preview each arm's reward at its β; arms with the same references share their samples.

    Args:
        configs: of the DPR arms.
        prompts: file of prompts that are neither trained nor tested on.
        samples: of π_SFT a prompt.
        limit: prompts used.
        seed: of the samples.
    """
    read = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in configs.items()}
    promised: dict[str, Promise] = {}
    for references in {tuple(config["data"]["init_args"]["references"]): None for config in read.values()}:
        group = {
            name: group_config
            for name, group_config in read.items()
            if tuple(group_config["data"]["init_args"]["references"]) == references
        }
        data = next(iter(group.values()))["data"]["init_args"]
        forms = {name: reward_of(group_config) for name, group_config in group.items()}
        betas = {
            name: float(group_config["model"]["init_args"]["kl"]["coefficient"]) for name, group_config in group.items()
        }
        tokenizer = load_tokenizer(data["sft"])
        questions = PromptSet.load(str(prompts), tokenizer, limit=limit)
        dense = DenseReward.from_folders(data["sft"], list(references))
        dense.frozen.to(best_device())
        with progress_bar("preview", len(questions) * samples) as advance:
            run = preview_reward(
                dense,
                tokenizer,
                questions,
                answers_of(data),
                verifier=verifier_named(VERIFIER),
                num_samples=samples,
                betas=sorted(set(betas.values())),
                forms=forms,
                seed=seed,
                progress=advance,
            ).preview
        assert run.score is not None
        for name in group:
            point = run.reward(name).at(betas[name])
            assert point.score is not None
            promised[name] = Promise(point.score, run.score.mean, point.reliable)
    return promised


def agreement(promised: Sequence[float], reached: Sequence[float]) -> dict[str, Any]:
    """Spearman's correlation of promised and reached gains, and the share of runs with the predicted sign.

    Args:
        promised: gain over π_SFT at the optimum, a run each.
        reached: gain of the trained policy.
    """
    same = [(ours > 0) == (theirs > 0) for ours, theirs in zip(promised, reached, strict=True)]
    constant = len(set(promised)) < 2 or len(set(reached)) < 2
    correlation = None if constant else float(stats.spearmanr(promised, reached).statistic)
    return {"runs": len(same), "rank_correlation": correlation, "same_sign": sum(same) / len(same) if same else None}
