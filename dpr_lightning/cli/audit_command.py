"""``dpr audit``: does a reward separate right from wrong, and against which reference? A test before any RL."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from dpr_lightning.cli.planted_rows import MISTAKES, Planting, measure_list
from dpr_lightning.cli.planted_rows import SFT as SFT_OF_COPY
from dpr_lightning.cli.repeated_training import FOLDS, Folds
from dpr_lightning.cli.suspicious_rows import LIST, PAGE, AuditedRows, list_suspects, load_demonstrations
from dpr_lightning.cli.trained_rows import Audited, SuspicionKind, list_trained, method_of
from dpr_lightning.data import PromptSet, Rows, last_turn
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.audit import RewardAudit, Rewarded, audit_reward, recommend
from dpr_lightning.evaluation.corruption import corrupt_one_token
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.evaluation.scored_samples import ScoredSamples
from dpr_lightning.evaluation.suspects import Suspect
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.fold_policies import FOLDS_RECORD
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.policies import load_tokenizer, special_tokens
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import audit_table, trust_table
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import SFT, DenseReward, RewardSpec, token_rewards
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.run_manifest import RunManifest
from dpr_lightning.types import TokenScores

CONTROL = "log_policy"
AUDITED = ("log_ratio", "centred", "one_sided", "one_sided_centred", CONTROL)
FAILED = 3
HELD_OUT_LIMIT = 200
LIST_MARKS = ('"loss_spans"',)
PLANTED = ".planted"
"""Suffix of the folder of the copy and its trainings, beside the file of the audit."""
MARKS = ('"audits"',)
"""Text in every file of this command."""


def audit(
    sft: ReadPath,
    references: list[ReadPath],
    demonstrations: Rows,
    verifier: str | None = None,
    samples: int = 4,
    limit: int | None = None,
    max_new_tokens: int = 256,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 512,
    suspicious: int = 200,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    output: Annotated[
        str | None,
        Writes(marks=MARKS),
        Writes(marks=REPORT_MARKS, suffix=PAGE),
        Writes(marks=LIST_MARKS, suffix=LIST),
        Writes("fold_*", FOLDS_RECORD, suffix=FOLDS),
        Writes(SFT_OF_COPY, f"{SFT_OF_COPY}.*", MISTAKES, "fold_*", FOLDS_RECORD, suffix=PLANTED),
    ] = None,
    rows: AuditedRows = "held_out",
    exclude: Rows | None = None,
    max_length: int | None = None,
    folds: int | None = None,
    fold_share: float = 0.25,
    suspicion: SuspicionKind | None = None,
    normalised: bool = False,
    plant: float | None = None,
    recipe: ReadPath | None = None,
) -> int:
    """Test the reward of each reference on demonstrations, on corrupted ones and on samples of π_SFT.

    Exit code 0: a reward passes; 3: none locates the wrong token, and RL on it would follow noise; 2: bad input.
    With ``rows=train`` no reward is tested: demonstrations that were trained on are listed, those that the run learnt
    last first, since mistakes are among them.

    Args:
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run; each is audited separately, and with ``rows=train``
            all are taken together.
        demonstrations: file of demonstrations, by default some that were not trained on.
        verifier: name of a verifier or module:function, for the agreement of reward and verifier on samples.
        samples: samples of π_SFT a prompt.
        limit: demonstrations used; by default 200, and of those that were trained on all.
        max_new_tokens: length limit of a sample.
        stop_strings: texts that end an answer.
        batch_size: sequences decoded at once.
        suspicious: demonstrations on the page, the most suspicious ones; the first 20 are printed too.
        columns: names of columns.
        dtype: of the models' parameters.
        seed: of corruptions and samples.
        output: JSON file to write, and beside it a page of the same name, ``.html``, of the demonstrations to check,
            and a list of them, ``.listed.jsonl``, for `dpr clean`.
        rows: ``held_out``: the demonstrations were not trained on; ``train``: they were.
        exclude: with ``rows=train``, rows whose prompts are left out, such as those held out of the same file.
        max_length: with ``rows=train``, tokens of the longest demonstration that was trained on; longer ones are left
            out.
        folds: with ``rows=train``, also score each row by a policy that did not learn from it: rows are divided by
            their prompts into so many folds, and one is trained without each of them.
        fold_share: steps of each of these trainings, as a share of the run's.
        suspicion: ``memorised``: by when the run learnt a row; ``refused``: rows with tokens of which π_SFT is sure
            that they are others, where it was trained with ``trim``; ``crossfitted``: by the policies of the folds;
            ``combined``: by folds and memory, which is the default with ``folds``.
        normalised: divide margins by 1 + the entropy of the policy, so that they count less where it is undecided.
        plant: with ``rows=train``, put mistakes into this share of a copy of the rows, such as 0.02, repeat SFT and the
            folds on it, and say how many of them the top of its list has: how far to trust the list.
        recipe: run.json of the run whose SFT is repeated for ``folds`` and ``plant``; ``--run`` names it.

    Returns:
        The exit code.
    """
    path = _output(output)
    if not references:
        raise InputError("`references` is empty, and an audit takes at least one reference.")
    if rows == "held_out" and any(
        value is not None for value in (exclude, max_length, folds, suspicion, plant, normalised or None)
    ):
        raise InputError(
            "`exclude`, `max_length`, `folds`, `suspicion`, `normalised` and `plant` are options of `rows: train` "
            "alone. Leave them out."
        )
    if rows == "train":
        cross_fitting, planting = None, None
        if folds is not None or plant is not None:
            run, file = _run_to_repeat(recipe, path)
            cross_fitting = None if folds is None else Folds(run, folds, fold_share, seed, file.with_suffix(FOLDS))
            planting = None if plant is None else Planting(plant, seed, run, file.with_suffix(PLANTED))
        method = method_of(suspicion, cross_fitting, normalised=normalised, dtype=dtype)
        tokenizer = load_tokenizer(sft)
        data = load_demonstrations(
            demonstrations, tokenizer, sft, columns=columns, limit=limit, exclude=exclude, max_length=max_length
        )
        audited = Audited(demonstrations, data, sft, references)
        additions: dict[str, Any] = {"suspicion": method.to_dict()}
        trust = None
        if planting is not None:
            planted = measure_list(audited, method, planting, tokenizer, columns, max_length)
            trust, additions["planted"] = planted.trust(), planted.to_dict(planting.share)
        listed = list_trained(audited, method, tokenizer, columns=columns, count=suspicious, output=path, trust=trust)
        if trust is not None:
            console.print(trust_table(trust))
            console.print(trust.words, highlight=False, markup=False, soft_wrap=True)
        if path is not None:
            _write(path, [], "", listed, additions)
        return 0
    return audit_held_out(
        sft,
        references,
        demonstrations,
        SamplingOptions(max_new_tokens, batch_size=batch_size, stop_strings=stop_strings),
        verifier=verifier,
        samples=samples,
        limit=HELD_OUT_LIMIT if limit is None else limit,
        suspicious=suspicious,
        columns=columns,
        dtype=dtype,
        seed=seed,
        path=path,
    )


def audit_held_out(
    sft: str,
    references: list[str],
    demonstrations: Rows,
    options: SamplingOptions,
    *,
    verifier: str | None,
    samples: int,
    limit: int,
    suspicious: int = 200,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    path: Path | None = None,
    sampled: Mapping[str, ScoredSamples] | None = None,
) -> int:
    """Audit rewards on demonstrations that were not trained on.

    Args:
        sft: as of :func:`audit`, and so the others that have its names.
        references: each is audited.
        demonstrations: file of demonstrations.
        options: of the sampler.
        verifier: name of a verifier.
        samples: samples of π_SFT a prompt.
        limit: demonstrations used.
        suspicious: demonstrations on the page.
        columns: names of columns.
        dtype: of the models' parameters.
        seed: of corruptions and samples.
        path: JSON file to write.
        sampled: by reference, samples of π_SFT for these prompts that are there already with their scores.

    Returns:
        The exit code.
    """
    tokenizer = load_tokenizer(sft)
    data = load_demonstrations(demonstrations, tokenizer, sft, columns=columns, limit=limit)
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    prompts = PromptSet.load(demonstrations, tokenizer, columns=columns, limit=limit)
    answers_prompt = last_turn(mask)
    _check_same_prompts(tokens, answers_prompt, prompts)
    earlier = (mask & ~answers_prompt).sum(1, keepdim=True)
    if len(data) < 2:
        raise InputError(f"An audit takes at least two demonstrations, and {data.file} has {len(data)}.")
    audits: list[RewardAudit] = []
    scores_of: dict[str, TokenScores] = {}
    scored_samples = {} if sampled is None else {name: each.first(samples) for name, each in sampled.items()}
    answers = next((each.answers for each in scored_samples.values()), None)
    corrupted = None
    rounds = 2 * len(references) + samples * sum(reference not in scored_samples for reference in references)
    rounds += samples if answers is None else 0
    with progress_bar("audit", len(data) * rounds) as advance:
        for reference in references:
            dense = DenseReward.from_folders(sft, [reference], RewardSpec(), dtype=dtype)
            dense.frozen.to(best_device())
            with dense.frozen.use(SFT) as policy:
                if corrupted is None:
                    stops = special_tokens(tokenizer, policy).stops
                    corrupted = corrupt_one_token(tokens, mask, stops=stops, seed=seed)
                if answers is None:
                    answers = collect_answers(
                        policy,
                        tokenizer,
                        prompts,
                        options,
                        verifier=verifier_named(verifier),
                        num_samples=samples,
                        seed=seed,
                        progress=advance,
                    )

            def score(ids: torch.Tensor, acted: torch.Tensor, dense: DenseReward = dense) -> TokenScores:
                return dense.score(ids, acted, divergence=True, progress=advance)

            ours, twins = score(tokens, mask), score(corrupted.tokens, mask)
            scores_of[reference] = ours
            if reference in scored_samples:
                samples_scored = scored_samples[reference].scores
            else:
                samples_scored = score(answers.rollouts.tokens, answers.rollouts.mask)
            for name in AUDITED:
                spec = RewardSpec(name)
                audits.append(
                    audit_reward(
                        reference,
                        name,
                        _rewarded(ours, spec),
                        _rewarded(twins, spec),
                        corrupted.action.numpy(),
                        _rewarded(ours, spec, after=earlier),
                        _rewarded(samples_scored, spec),
                        answers.scores,
                    )
                )
    console.print(audit_table([dataclasses.asdict(record) | {"passes": record.passes} for record in audits]))
    best, words = recommend(audits, CONTROL)
    console.print(words)
    selected = best if best is not None else audits[0]
    scored = scores_of[selected.reference]
    scored = scored._replace(reward=token_rewards(scored, RewardSpec(selected.form)))
    reward = f"{selected.form} against {selected.reference}"
    listed = list_suspects(
        demonstrations, data, scored, tokenizer, reward, columns=columns, count=suspicious, output=path
    )
    if path is not None:
        _write(path, audits, words, listed)
    return 0 if best is not None else FAILED


def _check_same_prompts(tokens: torch.Tensor, turn: torch.Tensor, prompts: PromptSet) -> None:
    """Refuse demonstrations whose prompt is not the one that is sampled from."""
    for index, (row, acted, prompt) in enumerate(zip(tokens, turn, prompts.tokens, strict=True)):
        if row[: int(acted.long().argmax())].tolist() != prompt:
            raise InputError(
                f"{prompts.where(index)} goes on after the last turn of the assistant that is learnt from, so π_SFT "
                "would get another prompt than the demonstration answers. Cut the row there."
            )


def _rewarded(scores: TokenScores, spec: RewardSpec, after: torch.Tensor | int = 0) -> Rewarded:
    """Rewards of the actions at positions from ``after`` [N, 1] of each row on."""
    mask = scores.mask & (torch.arange(scores.mask.shape[1]) >= after)
    return Rewarded(token_rewards(scores, spec).double().numpy(), mask.numpy())


def _output(output: str | None) -> Path | None:
    if output is not None and Path(output).suffix == PAGE:
        raise InputError(f"`output` is a JSON file, and its page is beside it: found {output}. Write a name in .json.")
    return None if output is None else Path(output)


def _run_to_repeat(recipe: str | None, path: Path | None) -> tuple[RunManifest, Path]:
    """The run whose SFT `folds` and `plant` repeat, and the file beside which they do."""
    if recipe is None or path is None:
        raise InputError(
            "`folds` and `plant` repeat the SFT of a run, and write to the folder of its audit. Name the run: `dpr "
            "audit --run FOLDER --rows train --folds 4`."
        )
    manifest = RunManifest.load(recipe)
    _ = manifest.sft_config  # a run without one is refused before any model is loaded
    return manifest, path


def _write(
    path: Path, audits: list[RewardAudit], words: str, listed: list[Suspect], additions: Mapping[str, Any] | None = None
) -> None:
    content: dict[str, Any] = {
        **(additions or {}),
        "audits": [dataclasses.asdict(record) | {"passes": record.passes} for record in audits],
        "recommendation": words,
        "suspects": [dataclasses.asdict(suspect) for suspect in listed],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Written to {path}")
