"""What this package can do with an architecture, tried on a tiny model; each function returns a cell of the table."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dpr_lightning.data.largest_batches import largest_demonstrations
from dpr_lightning.engine import acted_loss, action_logits, sequence_logprobs, shares_prompts
from dpr_lightning.engine.decoding import sampling_route
from dpr_lightning.errors import InputError
from dpr_lightning.functional import token_logprobs
from dpr_lightning.live_bytes import LiveBytes
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, check_policy, save_policy
from dpr_lightning.policies.outline import materialise, outline_policy
from dpr_lightning.policies.without_content import without_content
from dpr_lightning.rollouts import SamplingOptions, decode_longest, sample
from dpr_lightning.types import Rollouts
from tests.architectures.models import tiny_config, tiny_model
from tests.tiny import tiny_tokenizer

COLUMNS = ("SFT", "LoRA", "sample", "score", "DPR", "plan", "export")
EXACT = 1e-5
"""Nats by which log-probabilities may differ; where they differ by more, the cell says by how much."""
_PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [9, 10]]
_STOPS = [1, *range(40, 50)]


class Model:
    """A tiny model in its folder, and the answers sampled from it so far.

    Args:
        kind: name of the architecture.
        folder: that it is written to.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.spec = PolicySpec(source=str(folder))
        self.folder = folder
        tiny_config(kind).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        check_policy(self.spec)
        tiny_model(kind).save_pretrained(folder)  # type: ignore[operator]
        self.policy, self.tokenizer = build_policy(self.spec)
        sampling_route(self.policy)  # as at the start of `dpr fit`
        self.rollouts: Rollouts | None = None

    def sampled(self) -> Rollouts:
        """Two answers to each prompt, which end at different times."""
        if self.rollouts is None:
            options = SamplingOptions(8)
            self.rollouts = sample(
                self.policy, _PROMPTS, options, stop_tokens=_STOPS, pad_token=0, num_samples=2, seed=3
            )
        return self.rollouts


def sft(model: Model) -> str:
    """A loss and its gradient on rows of different lengths; the loss is that of each row on its own."""
    tokens, mask = _rows()
    result = acted_loss(model.policy.eval(), tokens, mask, lambda logprob, _: -logprob.sum())
    result.loss.backward()  # type: ignore[no-untyped-call]
    expected = -_row_by_row(model.policy, tokens, mask)[mask[:, 1:]].sum()
    _expect(abs(float(result.loss.detach() - expected)) <= EXACT * int(mask.sum()), "another loss than row by row")
    gradients = [weight.grad for weight in model.policy.parameters() if weight.grad is not None]
    _expect(bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients), "no finite gradient")
    model.policy.zero_grad(set_to_none=True)
    config: Any = model.policy.config
    return "yes (eager)" if config._attn_implementation == "eager" and _attends(model.policy) else "yes"


def lora(model: Model) -> str:
    """Adapters on every linear layer have gradients."""
    spec = PolicySpec(source=model.spec.source, lora=LoraSpec(rank=2, target_modules="all-linear"))
    policy, _ = build_policy(spec)
    tokens, mask = _rows()
    acted_loss(policy, tokens, mask, lambda logprob, _: -logprob.sum()).loss.backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for name, weight in policy.named_parameters() if "lora_B" in name]
    _expect(any(gradient is not None and bool(gradient.any()) for gradient in gradients), "adapters have no gradient")
    return "yes"


def sampling(model: Model) -> str:
    """Answers, and by which route."""
    model.sampled()
    route = sampling_route(model.policy).name
    return "yes" if route == "own cache" else f"yes ({route})"


def score(model: Model) -> str:
    """Log-probabilities of sampled rows are those of each row on its own, and those that they were sampled with."""
    rollouts = model.sampled()
    with torch.no_grad():
        scored = action_logits(model.policy, rollouts.tokens, rollouts.mask)
    logprob = token_logprobs(scored.logits.float(), scored.tokens)[scored.mask]
    together = sequence_logprobs(model.policy, rollouts.tokens, rollouts.mask)[scored.mask]
    alone = _row_by_row(model.policy, rollouts.tokens, rollouts.mask)[rollouts.mask[:, 1:]]
    for result in (logprob, together):
        _expect(float((result - alone).abs().max()) <= EXACT, "other scores than row by row")
    difference = float((rollouts.logprob[scored.mask] - alone).abs().max())
    _expect(difference <= 1e-3, "sampled with other log-probabilities than scored")
    return "yes" if difference <= EXACT else "yes (to 0.001)"


def dpr(model: Model) -> str:
    """A policy-gradient step on sampled rows that a frozen copy has scored, with prompts shared where that is done."""
    rollouts = model.sampled()
    frozen = copy.deepcopy(model.policy).requires_grad_(False)
    reward = sequence_logprobs(frozen, rollouts.tokens, rollouts.mask)
    acted = action_logits(frozen, rollouts.tokens, rollouts.mask).mask
    weight = reward[acted]
    result = acted_loss(
        model.policy,
        rollouts.tokens,
        rollouts.mask,
        lambda logprob, part: -(logprob * weight[part.rows]).sum(),
        sampled=True,
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    _expect(float((result.logprob[acted] - reward[acted]).detach().abs().max()) <= EXACT, "other log-probabilities")
    model.policy.zero_grad(set_to_none=True)
    return "yes (shared prompts)" if shares_prompts(model.policy) else "yes"


def plan(model: Model) -> str:
    """Memory of a loss, its gradient and sampling is counted on a model without weights, as `dpr plan` does it."""
    with without_content(), LiveBytes() as live:
        outline = materialise(outline_policy(model.spec))
        weights = live.live
        batch = largest_demonstrations(2, 6)
        result = acted_loss(outline, batch.tokens, batch.mask, lambda logprob, _: -logprob.sum())
        result.loss.backward()  # type: ignore[no-untyped-call]
        decode_longest(outline, batch.tokens.tolist(), SamplingOptions(max_new_tokens=4), 1)
    _expect(live.peak > weights > 0, "nothing counted")
    return "yes"


def export(model: Model) -> str:
    """The folder that is saved gives the same logits in plain transformers."""
    folder = save_policy(model.policy, model.tokenizer, model.folder / "exported", model.spec)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=_attention(model.policy)).eval()
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        difference = (
            (loaded(tokens, use_cache=False).logits - model.policy.eval()(tokens, use_cache=False).logits).abs().max()
        )
    _expect(float(difference) <= EXACT, "other logits in plain transformers")
    return "yes"


ABILITIES: dict[str, Callable[[Model], str]] = dict(
    zip(COLUMNS, (sft, lora, sampling, score, dpr, plan, export), strict=True)
)


def abilities(kind: str, folder: Path) -> dict[str, str]:
    """The row of an architecture: a cell for each of ``COLUMNS``."""
    try:
        model = Model(kind, folder)
    except (InputError, ValueError) as error:
        return dict.fromkeys(COLUMNS, f"no: {_reason(str(error))}")
    row = {}
    for column, ability in ABILITIES.items():
        try:
            row[column] = ability(model)
        except InputError as error:
            row[column] = f"no: {_reason(str(error))}"
        except Exception as error:  # what fails is what the table is for
            row[column] = f"no: {_reason(f'{type(error).__name__}: {error}')}"
    return row


def _reason(message: str) -> str:
    for words in ("not causal", "encoder-decoder", "no causal language model"):
        if words in message:
            return words
    return message.partition("\n")[0].replace("|", "/")[:100]


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _rows() -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    for row, (prompt, length) in enumerate([(3, 6), (5, 12), (2, 9)]):
        tokens[row, :length] = torch.arange(3, 3 + length) + 5 * row
        mask[row, prompt:length] = True
    return tokens, mask


@torch.no_grad()
def _row_by_row(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [B, L−1] of each row on its own, without padding."""
    result = torch.zeros(tokens.shape[0], tokens.shape[1] - 1)
    for row, length in enumerate((mask.long() * torch.arange(1, tokens.shape[1] + 1)).amax(1).tolist()):
        alone = tokens[row : row + 1, :length]
        logits = model(input_ids=alone, use_cache=False).logits[:, :-1]
        result[row, : length - 1] = token_logprobs(logits, alone[:, 1:])[0]
    return result


def _attention(model: nn.Module) -> str:
    config: Any = model.config
    return str(config._attn_implementation)


def _attends(model: nn.Module) -> bool:
    """Whether the architecture has attention at all, so that its implementation matters."""
    return any("attention" in type(module).__name__.lower() for module in model.modules())
