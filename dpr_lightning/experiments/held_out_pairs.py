"""How well scorers predict preferences that they were not trained on: likelihood and accuracy on held-out pairs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PreferenceDataModule, PromptSet
from dpr_lightning.data.ground_truth import Verifier, check_ground_truth, verifier_scores
from dpr_lightning.data.opponent_data import last_turn, widen
from dpr_lightning.data.response_pairs import PairedDataset
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.policies import special_tokens
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.rewards import OutcomeScorer
from dpr_lightning.rollouts import decode_answers

LARGEST_SCALE = 50.0


@dataclass(frozen=True)
class PairFit:
    """``likelihood``: mean log-probability that the Bradley–Terry model of the scores gives the labels, nats a pair (a
    coin: −0.693); ``accuracy``: share of pairs whose chosen response scores higher, equal scores count half."""

    likelihood: float
    accuracy: float

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


def pair_fit(gaps: NDArray[np.float64], scale: float = 1.0) -> PairFit:
    """How well differences of scores (chosen − rejected) [P], times ``scale``, predict the labels."""
    likelihood = -np.logaddexp(0.0, -scale * gaps).mean()
    return PairFit(float(likelihood), float((gaps > 0).mean() + 0.5 * (gaps == 0).mean()))


def best_scale(gaps: NDArray[np.float64]) -> float:
    """The scale of scores, between 0 and 50, at which differences [P] predict the labels best."""
    fitted = minimize_scalar(
        lambda scale: -pair_fit(gaps, scale).likelihood, bounds=(0.0, LARGEST_SCALE), method="bounded"
    )
    return float(fitted.x)


def score_gaps(
    pairs: str,
    sft_folder: str,
    sft: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    scorers: Mapping[str, OutcomeScorer],
    verifier: Verifier | None,
    options: Mapping[str, Any],
) -> dict[str, NDArray[np.float64]]:
    """Score of the chosen response less that of the rejected one, of each pair of a file, [P] by name.

    Args:
        pairs: the file.
        sft_folder: of π_SFT.
        sft: π_SFT, that scorers compare with.
        tokenizer: of π_SFT.
        scorers: by name.
        verifier: the oracle, under the name ``oracle``; None: without.
        options: of the tokens, as of :class:`PreferenceDataModule`.
    """
    data = PreferenceDataModule(pairs, sft_folder, validation=None, tokenizer=sft_folder, batch_size=1, **options)
    data.setup("fit")
    chosen = data.train_data
    assert isinstance(chosen, PairedDataset)
    pad, index = int(tokenizer.pad_token_id), np.arange(len(chosen))
    parts = [each.batch(index, 1.0, pad) for each in (chosen, chosen.rejected)]
    width = max(part.tokens.shape[1] for part in parts)
    tokens = torch.cat([widen(part.tokens, width, pad) for part in parts])
    mask = torch.cat([widen(last_turn(part.mask), width, False) for part in parts])
    result: dict[str, NDArray[np.float64]] = {}
    sft_logprob = sequence_logprobs(sft, tokens, mask).sum(1)
    for name, scorer in scorers.items():
        scorer.to(best_device())
        result[name] = _gaps(scorer.score(tokens, mask, lambda: sft_logprob).double().numpy())
    if verifier is not None:
        prompts = PromptSet.load(pairs, tokenizer, columns=options.get("columns"))
        check_ground_truth(prompts, verifier)
        position = {number: each for each, number in enumerate(prompts.numbers)}
        rows = [position[int(number)] for number in chosen.numbers] * 2
        texts = decode_answers(tokens, mask, tokenizer, special_tokens(tokenizer, sft))
        result["oracle"] = _gaps(np.array(verifier_scores(verifier, prompts, rows, texts)))
    return result


def _gaps(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    half = len(scores) // 2
    return np.asarray(scores[:half] - scores[half:])
