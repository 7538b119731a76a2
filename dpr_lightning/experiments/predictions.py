"""Does the cheap preview predict the expensive run? The gain that it promises each arm, and the gain of training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.preview import BETAS, describe
from dpr_lightning.evaluation.reward_preview import default_forms, form_name, preview_reward
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.experiments.arm_specs import BASE
from dpr_lightning.experiments.recipes import Config, answers_of, beta_of, reward_of
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.progress import progress_bar
from dpr_lightning.rewards import DenseReward, RewardSpec


@dataclass(frozen=True)
class Promise:
    """The preview of an arm: score at the optimum, score of π_SFT's samples, whether the samples reach the optimum."""

    optimum: float
    sft: float
    reliable: bool


@dataclass(frozen=True)
class SeedPreview:
    """The preview of one seed's arms.

    Attributes:
        promises: by arm.
        table: plain data of every form at every β for the references of the first arm, and ``words`` about it.
        words: what the table says of the first arm's reward, and of the published one.
    """

    promises: dict[str, Promise]
    table: dict[str, Any] | None
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "SeedPreview":
        """The preview that :meth:`to_dict` wrote."""
        promises = {name: Promise(**promise) for name, promise in saved["promises"].items()}
        return cls(promises, saved["table"], saved["words"])


def preview_arms(
    configs: Mapping[str, Config], prompts: Path, *, samples: int, limit: int, seed: int, verifier: str
) -> SeedPreview:
    """Preview each arm's reward at its β; arms with the same references share their samples.

    Args:
        configs: of arms that learn from a token reward.
        prompts: file of prompts that are neither trained nor tested on.
        samples: of π_SFT a prompt.
        limit: prompts used.
        seed: of the samples.
        verifier: scores the samples.
    """
    promises: dict[str, Promise] = {}
    table, words = None, ""
    for references in {tuple(config["data"]["init_args"]["references"]): None for config in configs.values()}:
        group = {
            name: config for name, config in configs.items()
            if tuple(config["data"]["init_args"]["references"]) == references
        }  # fmt: skip
        first = next(iter(group.values()))
        sft = first["data"]["init_args"]["sft"]
        tokenizer = load_tokenizer(sft)
        questions = PromptSet.load(str(prompts), tokenizer, limit=limit)
        dense = DenseReward.from_folders(sft, list(references), RewardSpec())
        dense.frozen.to(best_device())
        rewards = {name: reward_of(config) for name, config in group.items()}
        plain = {form_name(reward): reward for reward in rewards.values() if reward == RewardSpec(form=reward.form)}
        forms = default_forms(RewardSpec()) | plain
        # A reward that is more than its form has its arm's name.
        names = {arm: form_name(reward) if reward in plain.values() else arm for arm, reward in rewards.items()}
        forms |= {names[arm]: reward for arm, reward in rewards.items() if names[arm] not in forms}
        with progress_bar("preview", len(questions) * samples) as advance:
            preview = preview_reward(
                dense,
                tokenizer,
                questions,
                answers_of(first),
                verifier=load_verifier(verifier),
                num_samples=samples,
                betas=sorted({*BETAS, *map(beta_of, group.values())}),
                forms=forms,
                seed=seed,
                progress=advance,
            ).preview
        assert preview.score is not None
        for arm, config in group.items():
            point = preview.reward(names[arm]).at(beta_of(config))
            assert point.score is not None
            promises[arm] = Promise(point.score, preview.score.mean, point.reliable)
        if table is None:
            table = preview.to_dict()
            ours = describe(preview, names[next(iter(group))], beta_of(first))
            published = describe(preview, "log_ratio", 1.0)
            words = ours  # the same where nothing can be ranked
            if published != ours:
                words += f"\nAs published, the reward is log_ratio with β around 1: {published}"
    return SeedPreview(promises, table, words)


def predicted(results: Mapping[str, list[dict[str, Any]]], promised: Sequence[Mapping[str, Promise]]) -> dict[str, Any]:
    """The gain that the preview promised each arm with a dense reward, and the gain of its sampled answers.

    Args:
        results: of each arm, one entry a seed with scores ``by_prompt``.
        promised: of each seed, by arm.

    Returns:
        ``runs``: by arm, a list over seeds of ``{"promised", "reached", "reliable"}``, gains over π_SFT; and
        ``all``, ``reliable``: :func:`agreement` over all runs, and over those whose optimum samples can reach.
    """
    runs = {
        name: [
            {
                "promised": of_seed[name].optimum - of_seed[name].sft,
                "reached": float(np.mean(ours["by_prompt"]["sampled"]) - np.mean(theirs["by_prompt"]["sampled"])),
                "reliable": of_seed[name].reliable,
            }
            for of_seed, ours, theirs in zip(promised, results[name], results[BASE], strict=True)
        ]
        for name in (promised[0] if promised else {})
    }
    every = [run for of_arm in runs.values() for run in of_arm]
    sure = [run for run in every if run["reliable"]]
    return {"runs": runs} | {
        name: agreement([run["promised"] for run in selected], [run["reached"] for run in selected])
        for name, selected in (("all", every), ("reliable", sure))
    }


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


def foresight(preview: Mapping[str, Any]) -> str:
    """A sentence on how well the preview predicted what training reached."""
    parts = [
        f"{part['rank_correlation']:+.2f} over {part['runs']} runs {which}, {part['same_sign']:.0%} of the same sign"
        for which, part in (("in all", preview["all"]), ("whose optimum its samples reach", preview["reliable"]))
        if part["rank_correlation"] is not None
    ]
    if not parts:
        return "Too few runs on a dense reward to say whether the preview predicts what training reaches."
    return f"Rank correlation of the gain that the preview promised with the gain reached: {'; '.join(parts)}."
