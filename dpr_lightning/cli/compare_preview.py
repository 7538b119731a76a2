"""Does the cheap preview predict the expensive run? What it promised every arm, beside what training reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from dpr_lightning.cli.compare_specs import reward_of
from dpr_lightning.cli.loading import best_device, progress_bar, verifier_named
from dpr_lightning.cli.stage_configs import answers_of
from dpr_lightning.cli.stages import VERIFIER
from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.reward_preview import preview_reward
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.rewards import DenseReward


@dataclass(frozen=True)
class Promise:
    """What the preview says of an arm: score at the optimum, and of π_SFT's own samples; whether samples reach it."""

    optimum: float
    sft: float
    reliable: bool


def promises(configs: Mapping[str, Path], prompts: Path, *, samples: int, limit: int, seed: int) -> dict[str, Promise]:
    """The preview of each arm's reward at its β; arms with the same references share their samples.

    Args:
        configs: of the DPR arms.
        prompts: that nothing is trained or tested on.
        samples: of π_SFT a prompt.
        limit: prompts used.
        seed: of the samples.
    """
    read = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in configs.items()}
    found: dict[str, Promise] = {}
    for references in {tuple(config["data"]["init_args"]["references"]): None for config in read.values()}:
        chosen = {
            name: held for name, held in read.items() if tuple(held["data"]["init_args"]["references"]) == references
        }
        data = next(iter(chosen.values()))["data"]["init_args"]
        forms = {name: reward_of(held) for name, held in chosen.items()}
        betas = {name: float(held["model"]["init_args"]["kl"]["coefficient"]) for name, held in chosen.items()}
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
        for name in chosen:
            point = run.reward(name).at(betas[name])
            assert point.score is not None
            found[name] = Promise(point.score, run.score.mean, point.reliable)
    return found


def agreement(promised: Sequence[float], reached: Sequence[float]) -> dict[str, Any]:
    """Spearman's correlation of promised and reached gains, and the share of runs whose sign was foretold.

    Args:
        promised: gain over π_SFT at the optimum, a run each.
        reached: gain of the trained policy.
    """
    same = [(ours > 0) == (theirs > 0) for ours, theirs in zip(promised, reached, strict=True)]
    constant = len(set(promised)) < 2 or len(set(reached)) < 2
    correlation = None if constant else float(stats.spearmanr(promised, reached).statistic)
    return {"runs": len(same), "rank_correlation": correlation, "same_sign": sum(same) / len(same) if same else None}
