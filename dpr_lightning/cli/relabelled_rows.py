"""``dpr clean --how relabel``: new answers to flagged rows, by policies that did not learn from them and a verifier."""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.cli.repeated_training import FOLDS
from dpr_lightning.data import PromptSet, Row, open_rows, to_demonstration, to_prompt
from dpr_lightning.data.cleaning import FlaggedRow, NewAnswer
from dpr_lightning.data.ground_truth import check_ground_truth, verifier_scores
from dpr_lightning.data.held_out import SelectedRows
from dpr_lightning.data.loss_spans import LossSpan
from dpr_lightning.data.replaced_answers import with_answer
from dpr_lightning.data.row_types import row_hash, row_key
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.experiments.fold_policies import Fold, fold_policies
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.progress import progress_bar
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.run_manifest import AUDIT_OF_TRAINED, RunManifest

RIGHT = 1.0
"""Score by the verifier of a right answer."""
TEMPERATURE = 0.7
"""Of the samples: at 1 more of the accepted ones have a wrong step before a right end (docs/noisy.md)."""


def new_answers(
    manifest: RunManifest, flagged: Sequence[FlaggedRow], *, verifier: str | None, samples: int, seed: int = 0
) -> dict[str, NewAnswer | tuple[LossSpan, ...] | None]:
    """What becomes of each flagged row, by its content.

    A row whose answer the verifier accepts stays as it is (an empty tuple). Another one gets, of several samples of a
    policy that did not learn from it, the most probable one that is accepted; where there is none, it is dropped
    (None).

    Args:
        manifest: of the run.
        flagged: the rows.
        verifier: name of what scores answers.
        samples: answers to each prompt.
        seed: of the samples.

    Raises:
        InputError: there is no verifier or no cross-fitting, or a row lacks what the verifier compares with.
    """
    if verifier is None:
        raise InputError(
            "`--how relabel` takes answers that a verifier accepts, and the run has none. Name it with `--verifier`, "
            "such as numeric, or choose `--how drop` or `--how mask`."
        )
    if samples < 1:
        raise InputError(f"`--samples` is {samples}; it is a number of answers to each prompt, 1 or more.")
    score, folds = load_verifier(verifier), _folds(manifest)
    tokenizer = load_tokenizer(manifest.sft)
    contents = {row.content for row in flagged}
    opened = open_rows(manifest.train)
    index = {file: number for number, file in enumerate(opened.files)}
    rows = {content: row for row in opened if (content := row_hash(row.values)) in contents}
    keys = {content: row_key(index[row.file], row.number) for content, row in rows.items()}
    prompts = PromptSet.load(SelectedRows(opened, [*keys.values()]), tokenizer, columns=manifest.columns)
    at = {key: number for number, key in enumerate(prompts.numbers)}
    check_ground_truth(prompts, score)
    result: dict[str, NewAnswer | tuple[LossSpan, ...] | None] = {}
    rejected: dict[int, str] = {}
    for content, row in rows.items():
        answer = to_demonstration(row, manifest.columns).learnt_contents[-1]
        if verifier_scores(score, prompts, [at[keys[content]]], [answer])[0] >= RIGHT:
            result[content] = ()
        else:
            result[content] = None
            if _is_one_answer(row, manifest.columns):
                rejected[at[keys[content]]] = content
    limit = manifest.longest_demonstration or 256
    remaining = set(rejected)
    with progress_bar("answers sampled", samples * len(rejected)) as advance:
        for fold in folds:
            indices = [number for number in sorted(remaining) if int(prompts.prompt_hashes[number]) not in fold.learnt]
            remaining -= set(indices)
            if not indices:
                continue
            answers = collect_answers(
                frozen_policy(str(fold.policy))[0],
                tokenizer,
                prompts,
                SamplingOptions(limit, temperature=TEMPERATURE),
                verifier=score,
                num_samples=samples,
                seed=seed,
                indices=indices,
                progress=advance,
            )
            logprobs = answers.rollouts.logprob.sum(1).numpy()
            is_right = (np.array(answers.scores) >= RIGHT) & answers.rollouts.terminated.numpy()
            for position, number in enumerate(indices):
                part = slice(position * samples, (position + 1) * samples)
                best = best_sample(logprobs[part], is_right[part])
                content = rejected[number]
                text = None if best is None else answers.texts[position * samples + best]
                if text and with_answer(rows[content], text, manifest.columns) is not None:
                    result[content] = NewAnswer(text)
    return result


def best_sample(logprobs: NDArray[np.floating], is_right: NDArray[np.bool_]) -> int | None:
    """Index of the right sample with the highest log-probability [S], nats; None where none is right."""
    if not is_right.any():
        return None
    return int(np.where(is_right, logprobs, -np.inf).argmax())


def _folds(manifest: RunManifest) -> list[Fold]:
    """The policies of the run's last audit with folds.

    Raises:
        InputError: there are none.
    """
    folder = (manifest.folder / AUDIT_OF_TRAINED).with_suffix(FOLDS)
    folds = fold_policies(folder, manifest.columns)
    if not folds:
        raise InputError(
            f"`--how relabel` samples from policies that did not learn from the row, and {folder} has none. First: dpr "
            f"audit --run {shlex.quote(str(manifest.folder))} --rows train --folds 4"
        )
    return folds


def _is_one_answer(row: Row, columns: Mapping[str, str] | None) -> bool:
    """Whether the last learnt turn alone answers the prompt that is sampled from, so that a sample can replace it."""
    example = to_demonstration(row, columns)
    same_prompt = to_prompt(row, columns).prompt_text == example.prompt_text
    return same_prompt and (isinstance(example.completion, str) or len(example.completion or ()) == 1)
