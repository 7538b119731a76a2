"""Pairs of a policy's own responses, labelled by a judge: a file to learn preferences from, and what it took."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import Message, PromptSet, Rows, open_rows, to_prompt
from dpr_lightning.data.held_out import SelectedRows
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers, collect_answers
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.experiments.flops import FlopSum
from dpr_lightning.experiments.fold_policies import assign_folds, fold_policies
from dpr_lightning.experiments.json_cache import key_of
from dpr_lightning.experiments.pair_picks import PairsSpec, pick_pair
from dpr_lightning.folders import whole_file
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.frozen import check_one_vocabulary
from dpr_lightning.policies.inference_policy import best_device, frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.rewards import DenseReward, HeadScorer, OutcomeScorer, PolicyScorer, RewardSpec
from dpr_lightning.rewards.cache import policy_hash
from dpr_lightning.rollouts import SamplingOptions

PARTS, SUMMARY = ".parts.jsonl", ".json"
"""Suffixes, beside the file of pairs, of what an interrupted command goes on from, and of the counts and the cost."""
Scores = Callable[[EvaluatedAnswers], Tensor]


class NoPairs(InputError):
    """No prompt has two responses of which one scores higher."""


@dataclass
class PairSources:
    """The models and prompts that pairs are made from.

    Args:
        policy: folder of the policy whose responses are paired.
        prompts: rows.
        sft: folder of π_SFT, for the judges ``dense`` and ``policy``.
        references: folders of its earlier checkpoints, for ``dense``.
        reward: form of the token reward; None: the recommended one.
        sampling: where responses end, and how many are decoded at once.
        columns: names of columns in the rows.
        dtype: of the models' parameters.
        seed: of the responses and picks.
        folds: folder of cross-fitted policies: each prompt is answered by one that did not learn from it, and not by
            ``policy``.
    """

    policy: str
    prompts: Rows
    sft: str | None = None
    references: list[str] = field(default_factory=list)
    reward: RewardSpec | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    columns: dict[str, str] | None = None
    dtype: Dtype = "float32"
    seed: int = 0
    folds: str | None = None


def write_pairs(
    output: Path, spec: PairsSpec, sources: PairSources, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Sample, score and pair responses, and write a pair for each prompt that gives one.

    What is finished of an interrupted call with the same options is in a file beside ``output``, and is not repeated.

    Args:
        output: the file of pairs; its counts and its cost come beside it.
        spec: of the pairs.
        sources: models and prompts.
        progress: called with the number of prompts finished.

    Returns:
        the counts: ``pairs``, ``prompts``, ``equal``, ``ties``, ``unusable``; and ``flops`` of sampling and scoring.

    Raises:
        InputError: an option does not fit, a score is not finite, or no prompt gives a pair.
    """
    tokenizer = load_tokenizer(sources.policy)
    prompts = PromptSet.load(sources.prompts, tokenizer, columns=sources.columns, limit=spec.limit)
    judge = _Judge.load(spec.judge, sources, tokenizer)
    rows = {row.location: row for row in SelectedRows(open_rows(sources.prompts), prompts.numbers)}
    key = _key(spec, sources, prompts)
    options = SamplingOptions(
        sources.sampling.max_new_tokens,
        spec.temperature,
        1.0,
        sources.sampling.batch_size,
        sources.sampling.stop_strings,
    )
    batches = _batches(sources, prompts, max(1, options.batch_size // spec.samples))
    policy, loaded = None, ""
    parts = output.with_suffix(PARTS)
    finished = _finished_parts(parts, key)
    output.parent.mkdir(parents=True, exist_ok=True)
    with parts.open("w", encoding="utf-8") as stream:
        for part in ({"key": key}, *finished):
            _append(stream, part)
        for number, (folder, indices) in enumerate(batches):
            if number >= len(finished):
                if loaded != folder:
                    policy, loaded = frozen_policy(folder, sources.dtype)[0], folder
                assert policy is not None
                with FlopSum() as counter:
                    answers = collect_answers(
                        policy,
                        tokenizer,
                        prompts,
                        options,
                        verifier=judge.verifier,
                        num_samples=spec.samples,
                        seed=sources.seed,
                        indices=indices,
                    )
                    scores = judge.scores(answers)
                part = _paired(answers, scores, spec, sources, prompts, indices, rows, tokenizer.all_special_tokens)
                finished.append(part | {"flops": counter.total})
                _append(stream, finished[-1])
            if progress is not None:
                progress(len(indices))
    counts = Counter[str]()
    for part in finished:
        counts.update(part["counts"])
    pairs = [row for part in finished for row in part["pairs"]]
    answered = sum(len(indices) for _, indices in batches)
    summary: dict[str, Any] = {"pairs": len(pairs), "prompts": answered} | {
        name: counts[name] for name in ("equal", "ties", "unusable")
    }
    if not pairs:
        parts.unlink()
        raise NoPairs(
            f"No prompt of {prompts.file} gives a pair: of {counted(answered, 'prompt')}, {counts['equal']:,} have "
            f"equal or unusable responses alone, and {counts['ties']:,} responses with equal scores. Take more "
            "`samples`, a higher `temperature`, or another `judge`."
        )
    with whole_file(output) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs)
    summary |= {"flops": float(sum(part["flops"] for part in finished)), **asdict(spec), "seed": sources.seed}
    with whole_file(output.with_suffix(SUMMARY)) as file:
        file.write(json.dumps(summary, indent=2) + "\n")
    parts.unlink()
    return summary


def _batches(sources: PairSources, prompts: PromptSet, at_once: int) -> list[tuple[str, list[int]]]:
    """Which policy answers which prompts, a few at once.

    Raises:
        InputError: there are no cross-fitted policies in the folder of ``folds``, or all learnt from every prompt.
    """
    if sources.folds is None:
        groups = {sources.policy: list(range(len(prompts)))}
    else:
        folds = fold_policies(Path(sources.folds), sources.columns)
        groups = assign_folds(folds, prompts.prompt_hashes.tolist())
        if not any(groups.values()):
            raise InputError(
                f"`folds` is {sources.folds!r}, and no policy there answers a prompt that it did not learn from. Name "
                "the folder that `dpr audit --rows train --folds 4` trained, such as runs/mine/audit/train.folds."
            )
    return [
        (policy, indices[start : start + at_once])
        for policy, indices in groups.items()
        for start in range(0, len(indices), at_once)
    ]


def pairs_file(folder: Path, spec: PairsSpec, sources: PairSources, sft_key: str) -> Path:
    """The file with the pairs of an arm, which are made unless they are there.

    Args:
        folder: for the files of all arms; arms with the same pairs share one.
        spec: of the pairs.
        sources: models and prompts.
        sft_key: of the run that the models are from.
    """
    named = [sources.references, None if sources.reward is None else asdict(sources.reward), asdict(sources.sampling)]
    key = key_of(sft_key, json.dumps([asdict(spec), named, sources.seed], sort_keys=True))
    path = folder / f"{key[:16]}.jsonl"
    if not path.is_file() or not path.with_suffix(SUMMARY).is_file():
        with progress_bar(f"pairs of π_SFT by {spec.judge}", None) as advance:
            write_pairs(path, spec, sources, advance)
    return path


def pairs_flops(path: Path) -> float:
    """What the pairs of a file took, in floating-point operations."""
    return float(json.loads(path.with_suffix(SUMMARY).read_text(encoding="utf-8"))["flops"])


@dataclass
class _Judge:
    """What scores responses: a ``verifier`` of their texts, or a function of their tokens."""

    verifier: Any = None
    of_tokens: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def load(cls, judge: str, sources: PairSources, tokenizer: PreTrainedTokenizerBase) -> "_Judge":
        """Load the judge of that name.

        Raises:
            InputError: it does not exist, or needs models that are not named.
        """
        kind, _, name = judge.partition(":")
        if kind == "verifier":
            return cls(verifier=load_verifier(name))
        if kind == "head":
            return cls._of_scorer(HeadScorer.load(name, tokenizer, sources.dtype), None)
        if sources.sft is None or (kind == "dense" and not sources.references):
            missing = "`sft` and `references`" if kind == "dense" else "`sft`"
            raise InputError(f"The judge {judge!r} compares with π_SFT: name {missing}, or `run`, which has them.")
        check_one_vocabulary({"policy": sources.policy, "π_SFT": sources.sft})
        if kind == "policy":
            scorer = PolicyScorer.load(name, sources.sft, dtype=sources.dtype)
            return cls._of_scorer(scorer, frozen_policy(sources.sft, sources.dtype)[0])
        reward = sources.reward if sources.reward is not None else RewardSpec.recommended()
        dense = DenseReward.from_folders(sources.sft, sources.references, reward, dtype=sources.dtype)
        dense.frozen.to(best_device())
        return cls(of_tokens=lambda tokens, mask: dense.score(tokens, mask).reward.sum(1))

    @classmethod
    def _of_scorer(cls, scorer: OutcomeScorer, sft: nn.Module | None) -> "_Judge":
        scorer.to(best_device())

        def scores(tokens: Tensor, mask: Tensor) -> Tensor:
            def sft_logprob() -> Tensor:
                assert sft is not None
                return sequence_logprobs(sft, tokens, mask).sum(1)

            return scorer.score(tokens, mask, sft_logprob)

        return cls(of_tokens=scores)

    def scores(self, answers: EvaluatedAnswers) -> list[float]:
        """A number for each response."""
        if self.of_tokens is None:
            assert answers.scores is not None
            return [float(score) for score in answers.scores]
        scores: list[float] = self.of_tokens(answers.rollouts.tokens, answers.rollouts.mask).double().tolist()
        return scores


def _paired(
    answers: EvaluatedAnswers,
    scores: Sequence[float],
    spec: PairsSpec,
    sources: PairSources,
    prompts: PromptSet,
    indices: Sequence[int],
    rows: Mapping[str, Row],
    special: Sequence[str],
) -> dict[str, Any]:
    """The pairs of some prompts as rows, and how many prompts gave none.

    A response that spells a token of ``special`` is left out: as text, it is other tokens or none.
    """
    pairs: list[dict[str, Any]] = []
    counts = Counter[str]()
    for position, index in enumerate(indices):
        first = position * spec.samples
        texts: dict[str, float] = {}
        for text, score in zip(answers.texts[first:], scores[first : first + spec.samples], strict=False):
            if not math.isfinite(score):
                raise InputError(
                    f"{prompts.where(index)}: the judge {spec.judge!r} gives {score} to the response {text[:80]!r}."
                )
            if not text.strip() or any(token in text for token in special):
                counts["unusable"] += 1
                continue
            texts.setdefault(text, score)
        if len(texts) < 2:
            counts["equal"] += 1
            continue
        random = np.random.default_rng([sources.seed, index])
        pair = pick_pair(list(texts.values()), spec.pick, spec.label_temperature, random)
        if pair is None:
            counts["ties"] += 1
            continue
        chosen, rejected = (list(texts.items())[each] for each in pair)
        row = prompt_columns(rows[prompts.where(index)], sources.columns)
        row |= {"chosen": chosen[0], "rejected": rejected[0]}
        row |= {"chosen_reward": chosen[1], "rejected_reward": rejected[1]}
        if "answer" in prompts.metadata[index]:
            row["answer"] = prompts.metadata[index]["answer"]
        pairs.append(row)
    return {"pairs": pairs, "counts": dict(counts)}


def prompt_columns(row: Row, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """The columns of a new row with the prompt of another: ``prompt``, and what its chat template reads besides."""
    prompt = to_prompt(row, columns).prompt
    names = {name: (columns or {}).get(name, name) for name in TEMPLATE_COLUMNS}
    inputs = {name: row.values[column] for name, column in names.items() if row.values.get(column) is not None}
    return {"prompt": prompt if isinstance(prompt, str) else [_turn(message) for message in prompt], **inputs}


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content, **message.fields}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    return turn


def _key(spec: PairsSpec, sources: PairSources, prompts: PromptSet) -> str:
    """A hash of all that pairs depend on."""
    named = [sources.policy, sources.sft, *sources.references]
    folder = spec.judge.partition(":")[2] if spec.judge.startswith(("head:", "policy:")) else None
    policies = [policy_hash(each) for each in (*named, folder) if each is not None]
    reward = None if sources.reward is None else asdict(sources.reward)
    options: list[Any] = [asdict(spec), asdict(sources.sampling), reward, sources.dtype, sources.seed, sources.columns]
    if sources.folds is not None:
        options.append([policy_hash(str(fold.policy)) for fold in fold_policies(Path(sources.folds), sources.columns)])
    return key_of(json.dumps([policies, options, prompts.tokens, prompts.metadata], sort_keys=True, default=str))


def _finished_parts(path: Path, key: str) -> list[dict[str, Any]]:
    """What an interrupted call with this key had finished."""
    lines = list(_whole_lines(path)) if path.is_file() else []
    return lines[1:] if lines and lines[0].get("key") == key else []


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, up to one that was cut off."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        yield json.loads(line)


def _append(stream: TextIO, part: Mapping[str, Any]) -> None:
    stream.write(json.dumps(part, ensure_ascii=False) + "\n")
    stream.flush()
