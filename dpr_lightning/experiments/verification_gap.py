"""The generation–verification gap: online DPO by a global reward model less offline DPO, on the same pairs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dpr_lightning.data import PromptSet, Rows, open_rows, to_prompt
from dpr_lightning.data.ground_truth import check_ground_truth
from dpr_lightning.data.prompt_identity import hold_out_prompts, prompt_hash
from dpr_lightning.data.row_types import Row
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.verification import Ranking, verification
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.experiments.arm_answers import Arm, evaluate_arm
from dpr_lightning.experiments.arm_specs import STEPS
from dpr_lightning.experiments.held_out_pairs import best_scale, pair_fit, score_gaps
from dpr_lightning.experiments.json_cache import cached, key_of, write_cached
from dpr_lightning.experiments.online_preference import SOURCE, TRAIN, changed_copy
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.preference_pairs import NoPairs, PairSources, pairs_flops, prompt_columns
from dpr_lightning.experiments.recipes import Config, Recipes, recipe_config, recipe_text
from dpr_lightning.experiments.run_folder import announce
from dpr_lightning.experiments.shared_trainings import SharedTrainings
from dpr_lightning.folders import whole_file
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.rewards import HeadScorer, OutcomeScorer, PolicyScorer
from dpr_lightning.rewards.cache import content_hash, policy_hash
from dpr_lightning.rollouts import SamplingOptions

SFT, OFFLINE, ORACLE_ARM = "sft", "offline", "online_oracle"
ONLINE = ("online_global", "online_local", ORACLE_ARM)
log = logging.getLogger(__name__)
HOME = "runs/toy"
"""Folder that the paths of packaged recipes begin with."""


@dataclass(frozen=True)
class GapSpec:
    """What is compared.

    Args:
        policy: folder of π_SFT.
        pairs: preferences.
        test: prompts that are answered, with what the verifier needs.
        verifier: name of the oracle.
        dpo: recipe of offline and online DPO.
        head: recipe of the verifier head.
        steps: of DPO, and of the head; None: each recipe's.
        candidates: responses a prompt, of which the best and the worst are an online pair.
        held_out: share of the prompts of ``pairs`` on which scorers are measured.
        samples: answers to each test prompt, and the largest n of the best of n.
        sampling: where answers end.
        columns: names of columns of the rows.
    """

    policy: str
    pairs: Rows
    test: Rows
    verifier: str
    dpo: str
    head: str
    steps: int | None
    candidates: int
    held_out: float
    samples: int
    sampling: SamplingOptions
    columns: dict[str, str] | None


@dataclass(frozen=True)
class SeedGap:
    """One seed, as plain data.

    Attributes:
        scores: by arm and measure, of each test prompt.
        arms: by arm its means.
        fits: by scorer its :class:`~dpr_lightning.experiments.held_out_pairs.PairFit` on the held-out pairs.
        rankings: by scorer, of π_SFT's samples: ``best_of`` by n, and ``auc``.
        counts: pairs of each arm.
        flops: of each arm: its training, its pairs, and what ranks them.
    """

    scores: dict[str, dict[str, list[float]]]
    arms: dict[str, dict[str, float | None]]
    fits: dict[str, dict[str, float]]
    rankings: dict[str, dict[str, Any]]
    counts: dict[str, int]
    flops: dict[str, float]


@dataclass(frozen=True)
class GapRows:
    """Files of the pairs that are learnt, of those held out, and of the prompts of the first."""

    train: Path
    held_out: Path
    prompts: Path


def check_gap(spec: GapSpec) -> None:
    """Called before anything is trained or written.

    Raises:
        InputError: a recipe does not learn from pairs, or a row lacks what the verifier reads.
    """
    for name in (spec.dpo, spec.head):
        config = yaml.safe_load(recipe_text(name))
        data = str((config.get("data") or {}).get("class_path", ""))
        if not data.endswith("PreferenceDataModule"):
            raise InputError(
                f"The recipe {name} does not learn from a file of pairs: its `data.class_path` is {data!r}, and "
                "`--dpo` and `--head` take recipes of PreferenceDataModule."
            )
    tokenizer, verifier = load_tokenizer(spec.policy), load_verifier(spec.verifier)
    for rows in (spec.test, spec.pairs):
        check_ground_truth(PromptSet.load(rows, tokenizer, columns=spec.columns), verifier)


def split_pairs(spec: GapSpec, folder: Path) -> GapRows:
    """Write the pairs to learn, the held-out ones, and the prompts of the first, each once.

    Raises:
        InputError: there are too few prompts.
    """
    rows = list(open_rows(spec.pairs))
    hashes = np.array([prompt_hash(to_prompt(row, spec.columns).prompt_text) for row in rows], dtype=np.int64)
    prompts = len(set(hashes.tolist()))
    if not 2 <= round(spec.held_out * prompts) <= prompts - 2:
        raise InputError(
            f"{spec.pairs} has {counted(prompts, 'different prompt')}, and `held_out` is {spec.held_out:g}: two "
            "prompts at least are held out to measure scorers on, and two learnt. Bring pairs of more prompts, or "
            "change `--held_out`."
        )
    is_held_out = hold_out_prompts(hashes, spec.held_out, 0, str(spec.pairs))
    first: dict[int, Row] = {}
    for row, value, out in zip(rows, hashes.tolist(), is_held_out, strict=True):
        if not out:
            first.setdefault(value, row)
    files = GapRows(*(folder / f"{name}.jsonl" for name in ("train", "held_out", "prompts")))
    _write(files.train, [row.values for row, out in zip(rows, is_held_out, strict=True) if not out])
    _write(files.held_out, [row.values for row, out in zip(rows, is_held_out, strict=True) if out])
    _write(files.prompts, [_prompt_row(row, spec.columns) for row in first.values()])
    return files


def run_seed(spec: GapSpec, rows: GapRows, folder: Path, seed: int) -> SeedGap:
    """Train both scorers and four policies of one seed, and measure all; finished parts are not repeated.

    Args:
        spec: of the comparison.
        rows: from :func:`split_pairs`.
        folder: of the seed.
        seed: of weights, order and samples.

    Raises:
        InputError: a recipe or a row does not fit.
    """
    key = key_of(
        policy_hash(spec.policy), json.dumps(asdict(spec), sort_keys=True, default=str), content_hash(rows.train.parent)
    )
    if (saved := cached(folder / "results.json", key)) is not None:
        saved.pop("key")
        return SeedGap(**saved)
    sources = PairSources(spec.policy, str(rows.prompts), spec.policy, sampling=spec.sampling, seed=seed)
    shared = SharedTrainings(folder, key, sources)
    dpo, head = (_recipe(name, spec, folder, seed, rows.train) for name in (spec.dpo, spec.head))
    announce(f"Seed {seed}: a verifier head and offline DPO on the same pairs")
    scorer, offline = shared.train(head, "the verifier head"), shared.train(dpo, "offline DPO")
    judges = {
        "global": (f"head:{scorer.policy}", scorer.flops),
        "local": (f"policy:{offline.policy}", offline.flops),
        "oracle": (f"verifier:{spec.verifier}", 0.0),
    }
    policies, counts = {SFT: spec.policy, OFFLINE: offline.policy}, {OFFLINE: _length(rows.train)}
    flops = {SFT: 0.0, OFFLINE: offline.flops}
    for arm, (judge, judge_flops) in zip(ONLINE, judges.values(), strict=True):
        announce(f"Seed {seed}: {arm.replace('_', ' ')}")
        try:
            pairs = shared.pairs(PairsSpec(judge, samples=spec.candidates))
        except NoPairs as error:
            if arm != ORACLE_ARM:
                raise
            log.warning("%s is left out: %s", arm, error)
            continue
        equal = _first_rows(pairs, counts[OFFLINE])
        trained = shared.train(changed_copy(dpo, {TRAIN: str(equal)}, arm), arm)
        policies[arm], counts[arm] = trained.policy, _length(equal)
        flops[arm] = trained.flops + pairs_flops(pairs) + judge_flops
    announce(f"Seed {seed}: answers, and held-out pairs")
    sft, tokenizer = frozen_policy(spec.policy)
    test = PromptSet.load(spec.test, tokenizer, columns=spec.columns)
    verifier = load_verifier(spec.verifier)
    results = {
        name: evaluate_arm(
            Arm((frozen_policy(policy)[0],)),
            tokenizer,
            test,
            verifier,
            sft=sft,
            options=spec.sampling,
            samples=spec.samples,
            seed=seed + 7919,
        )
        for name, policy in policies.items()
    }
    beta = float(dpo["model"]["init_args"].get("scale", 0.1))
    scorers: dict[str, OutcomeScorer] = {
        "global": HeadScorer.load(scorer.policy, tokenizer),
        "local": PolicyScorer.load(offline.policy, spec.policy, beta),
    }
    options = {"cache_dir": None, "columns": spec.columns, "max_length": dpo["data"]["init_args"].get("max_length")}

    def gaps(path: Path) -> dict[str, NDArray[np.float64]]:
        return score_gaps(str(path), spec.policy, sft, tokenizer, scorers, verifier, options)

    held_out = gaps(rows.held_out)
    fits = {name: pair_fit(held_out[name]) for name in scorers}
    fits["oracle"] = pair_fit(held_out["oracle"], best_scale(gaps(rows.train)["oracle"]))
    sampled = results[SFT].sampled
    tokens, mask, shape = sampled.rollouts.tokens, sampled.rollouts.mask, (len(test), spec.samples)
    sft_logprob = sampled.rollouts.logprob.sum(1)
    rankings = verification(
        {
            name: scorer.score(tokens, mask, lambda: sft_logprob).reshape(shape).numpy()
            for name, scorer in scorers.items()
        },
        np.reshape(sampled.scores or [], shape),
        np.reshape(sampled.lengths, shape),
        powers(spec.samples),
    )
    seed_gap = SeedGap(
        {
            name: {measure: values.tolist() for measure, values in result.scores().items()}
            for name, result in results.items()
        },
        {name: result.summary() | {"teraflops": flops[name] / 1e12} for name, result in results.items()},
        {name: fit.to_dict() for name, fit in fits.items()},
        {ranking.name: _ranking(ranking) for ranking in rankings},
        counts,
        flops,
    )
    write_cached(folder / "results.json", key, asdict(seed_gap))
    return seed_gap


def powers(samples: int) -> list[int]:
    """1, 2, 4, … up to ``samples``, which is the last."""
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def _recipe(name: str, spec: GapSpec, folder: Path, seed: int, train: Path) -> Config:
    """A recipe from π_SFT on the pairs to learn."""
    config = recipe_config(name, Recipes("", "", HOME), folder, seed, {STEPS: spec.steps})
    data = config["data"]["init_args"]
    changes: dict[str, Any] = {
        SOURCE: spec.policy,
        TRAIN: str(train),
        "data.init_args.validation": None,
        "run.wandb": "off",
    }
    if spec.columns:
        changes["data.init_args.columns"] = spec.columns
    if "opponent" in data:
        changes["data.init_args.opponent"] = spec.policy
    return changed_copy(config, changes, name)


def _ranking(ranking: Ranking) -> dict[str, Any]:
    entry = ranking.to_dict()
    best_of = {str(count): interval["mean"] for count, interval in entry["best_of"].items()}
    return {"auc": entry["auc"], "best_of": best_of}


def _prompt_row(row: Row, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """A row with its prompt, and all columns but its responses: those that a verifier reads are among them."""
    responses = ("chosen", "rejected", "chosen_reward", "rejected_reward", "messages")
    rest = {name: value for name, value in row.values.items() if name not in responses}
    return {**rest, **prompt_columns(row, columns)}


def _first_rows(path: Path, count: int) -> Path:
    """A file with the first ``count`` pairs of another; that one where it has no more."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) <= count:
        return path
    shorter = path.with_name(f"{path.stem}_first_{count}.jsonl")
    with whole_file(shorter) as stream:
        stream.writelines(lines[:count])
    return shorter


def _length(path: Path) -> int:
    return sum(1 for _ in path.open(encoding="utf-8"))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(text)
