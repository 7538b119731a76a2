"""What a step takes in memory, found by running it on tensors that have shapes and no content."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

from dpr_lightning.engine import ActedStates, ActionLogits, ActionValues, TokenLoss, logits_at, shares_prompts
from dpr_lightning.engine.decoding import sample_tokens
from dpr_lightning.engine.decoding.decoder_state import DecoderState
from dpr_lightning.engine.decoding.prefill import TOKENS_AT_ONCE
from dpr_lightning.engine.decoding.routes import outlined_state
from dpr_lightning.engine.forward import logits_of_inputs
from dpr_lightning.engine.fused_head import rows_at_a_time
from dpr_lightning.engine.output_head import bare_head
from dpr_lightning.engine.scoring import logprobs_at, states_at
from dpr_lightning.engine.shared_prompts import Prompts, pays, prefill_shared
from dpr_lightning.engine.training_loss import loss_at
from dpr_lightning.functional import clipped_surrogate_loss, entropy, token_logprobs
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm, score_logits
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive that were made within it, real ones or fake ones.

    Attributes:
        live: bytes now.
        peak: the most there were at once.
        gradients_at_peak: how many of those were gradients.
        working_peak: the most there were of others than gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.gradients = self.gradients_at_peak = self.working_peak = 0
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._with_gradient: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note its result."""
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Any) -> None:
        if is_traceable_wrapper_subclass(tensor):
            # Such as a DTensor: its own operations, on what it wraps, are not seen from here.
            inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            tree_map_only(Tensor, self._note, list(inner))
            return
        if tensor.device.type == "meta":  # which is nowhere
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            self.live -= self._seen.pop(key)[1]

        self._seen[key] = (weakref.ref(storage, freed), size)
        self._grew(size)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Note that a storage has another size than it was made with; FSDP2 empties and refills its own."""
        if id(storage) in self._seen:
            reference, before = self._seen[id(storage)]
            self._seen[id(storage)] = (reference, storage.nbytes())
            self._grew(storage.nbytes() - before)

    def _grew(self, size: int) -> None:
        self.live += size
        self.working_peak = max(self.working_peak, self.live - self.gradients)
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients

    def watch_gradients(self, model: nn.Module) -> None:
        """Tell gradients from the rest."""

        def came(weight: Tensor) -> None:
            if id(weight) not in self._with_gradient:
                self._with_gradient.add(id(weight))
                self.gradients += _size(weight)

        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(came)

    def gradients_gone(self) -> None:
        """They were let go."""
        self._with_gradient.clear()
        self.gradients = 0

    def reset(self) -> None:
        """Forget the peak."""
        self.peak, self.gradients_at_peak, self.working_peak = self.live, self.gradients, self.live - self.gradients


@dataclass(frozen=True)
class Shape:
    """A micro-batch at its largest: ``rows`` of ``length`` tokens, of which the last ``acted`` are the policy's.

    ``prompts``: how many of them are different, where rows that answer one have it read once; None: rows on their own.
    """

    rows: int
    length: int
    acted: int
    prompts: int | None = None


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process that shares nothing.

    ``weights``, ``gradients``, ``optimizer``: what stays. ``peak``: the most at once, all included; of which
    ``working`` (activations, logits, whatever comes and goes) stood beside the ``gradients_at_peak``;
    ``most_working``: the most of that, at whatever moment. ``trainable``: bytes of the weights that are trained.
    """

    weights: int
    trainable: int
    gradients: int
    optimizer: int
    peak: int
    gradients_at_peak: int
    most_working: int

    @property
    def working(self) -> int:
        """Bytes that come and go."""
        return self.peak - self.weights - self.optimizer - self.gradients_at_peak


def training_memory(
    make_policy: Callable[[], nn.Module],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    shape: Shape,
    loss: Callable[[nn.Module, Shape], Tensor],
    *,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
) -> StepMemory:
    """Take two optimizer steps, the second with the optimizer's state in place, and count.

    Args:
        make_policy: builds the model; within a FakeTensorMode it takes no memory.
        make_optimizer: called with the trainable parameters.
        shape: of a micro-batch.
        loss: of a micro-batch of that shape.
        accumulate: micro-batches a step.
        autocast: dtype of the forward pass when it is not that of the weights.
    """
    with LiveBytes() as live:
        model = make_policy()
        live.watch_gradients(model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        weights, state = live.live, 0
        optimizer = make_optimizer(trained)
        copies = live.live - weights
        for _ in range(2):
            live.reset()
            for _ in range(accumulate):
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    value = loss(model, shape)
                value.backward()
                del value
            gradients = live.gradients
            before = live.live
            optimizer.step()
            state = state or copies + live.live - before
            optimizer.zero_grad()
            live.gradients_gone()
        return StepMemory(
            weights=weights,
            trainable=sum(map(_size, trained)),
            gradients=gradients,
            optimizer=state,
            peak=live.peak,
            gradients_at_peak=live.gradients_at_peak,
            most_working=live.working_peak - weights - state,
        )


def imitation_loss(model: nn.Module, shape: Shape) -> Tensor:
    """As :class:`SupervisedIRL` computes it."""
    return _acted(model, shape, lambda logprob, _: -logprob.sum())


def reinforce_loss(model: nn.Module, shape: Shape) -> Tensor:
    """As :class:`DensePathReinforce` computes it with ``estimator: reinforce``."""
    return _acted(model, shape, lambda logprob, _: _one_surrogate(logprob))


def algorithm_loss(model: nn.Module, shape: Shape, *, algorithm: RolloutAlgorithm) -> Tensor:
    """As a :class:`RolloutAlgorithm` computes it that leaves ``score`` as it is: by its own ``loss``."""
    tokens, mask, state, token = _batch(shape)
    inputs, start = _inputs(model, tokens, shape)
    actions = torch.ones_like(token, dtype=torch.bool)
    scored = score_logits(ActionLogits(logits_of_inputs(model, inputs, start.unsqueeze(1) + state), token, actions))
    row, value = torch.zeros(shape.rows, dtype=torch.long), torch.zeros(token.shape)
    part = RolloutBatch(tokens, mask, row > 0, row, value, value, value, value, value, torch.tensor(1.0))
    return algorithm.loss(scored, part)


def _acted(model: nn.Module, shape: Shape, token_loss: TokenLoss, action_values: ActionValues | None = None) -> Tensor:
    """As :func:`dpr_lightning.policies.acted_loss` does it; what logits hold is not known here, so nothing is tried."""
    tokens, mask, state, token = _batch(shape)
    if bare_head(model) is not None:
        inputs, start = _inputs(model, tokens, shape)
        index = (start.unsqueeze(1) + state).flatten()
        return loss_at(model, inputs, index, token.flatten(), token_loss, action_values).loss
    logits = logits_at(model, tokens, mask, state, packed=False).float()
    every = slice(0, token.numel())
    loss = token_loss(token_logprobs(logits, token).flatten(), every)
    if action_values is not None:
        logprobs = logits.flatten(0, 1).log_softmax(-1)
        loss = loss - (logprobs.exp() * action_values(logprobs.detach(), every)).sum()
    entropy(logits.detach().log_softmax(-1))
    return loss


def all_actions_step_loss(model: nn.Module, shape: Shape, *, models: int, rollout: int, logits: bool = False) -> Tensor:
    """As :class:`DensePathReinforce` computes it with ``estimator: all_actions``.

    Args:
        model: the policy.
        shape: of a micro-batch.
        models: frozen ones, whose states at the acted positions are held.
        rollout: rows of the whole rollout that they are held of.
        logits: whether, being in shards, they are held as the logits of this micro-batch instead.
    """
    weight: Tensor = model.get_output_embeddings().weight.detach()  # type: ignore[operator]
    saved_rows = shape.rows if logits else rollout
    states = [weight.new_zeros(saved_rows, shape.acted, weight.shape[0 if logits else 1]) for _ in range(models)]
    saved = [every[: shape.rows].clone() if shape.rows < saved_rows else every for every in states]
    saved = [part.flatten(0, 1) for part in saved]

    def values(logprobs: Tensor, states_part: slice) -> Tensor:
        index = torch.arange(states_part.start, min(states_part.stop, len(saved[0])))
        sft, *references = (ActedStates(part[None], None if logits else weight).logprobs(index) for part in saved)
        reward = sft - torch.stack(references).mean(0)
        return 1.0 * reward - 0.5 * (logprobs - sft)

    return _acted(model, shape, lambda logprob, _: _one_surrogate(logprob), values)


def scoring_memory(
    make_policy: Callable[[], nn.Module], shape: Shape, models: int, *, whole: bool, logits: bool = False
) -> int:
    """Bytes that come and go while ``models`` frozen models score a part of that shape.

    Args:
        make_policy: builds one of them.
        shape: rows scored at once.
        models: π_SFT and its references.
        whole: whether rewards of every token are wanted, and not of those chosen alone.
        logits: whether, being in shards, they keep no states before the head.
    """
    with LiveBytes() as live, torch.no_grad():
        model = make_policy()
        weights = live.live
        tokens, mask, state, token = _batch(shape)
        head, scores = None if logits else bare_head(model), []
        for _ in range(models):
            if head is None:
                every = logits_at(model, tokens, mask, state, packed=False)
                scores.append(every if whole else token_logprobs(every, token))
                continue
            inputs, start = _inputs(model, tokens, shape)
            index = start.unsqueeze(1) + state
            if whole:
                scores.append(states_at(model, head, inputs, index))
            else:
                scores.append(logprobs_at(model, head, inputs, index.flatten(), token.flatten()))
            del inputs
        if whole:
            # As rewards.distributions does it: one block of states after the other.
            weight = None if head is None else head.weight
            wide = scores[0].flatten(0, 1).T if weight is None else weight
            index = torch.arange(min(rows_at_a_time(wide), token.numel()))
            policy, *references = (ActedStates(states, weight).logprobs(index) for states in scores)
            (policy - torch.stack(references).mean(0)).clamp_max(0.0)
        return int(live.peak - weights)


def sampling_memory(
    make_policy: Callable[[], nn.Module], rows: int, prompt: int, options: SamplingOptions, prompts: int | None = None
) -> int:
    """Bytes of keys, values and what else there is while the last prompts are read, or at the last token of answers.

    Args:
        make_policy: builds the policy.
        rows: answers decoded at once.
        prompt: tokens of the longest prompt.
        options: their length limit.
        prompts: whose keys are kept once for all answers to them; None: each answer has its own.
    """
    with LiveBytes() as live, torch.no_grad():
        model = make_policy().eval()
        weights = live.live
        prefilled = rows if prompts is None else prompts
        cached = _read(model, prefilled, prompt)
        live.reset()
        _read(model, max(1, min(prefilled, TOKENS_AT_ONCE // prompt)), prompt)
        prefill_peak = live.peak
        if prompts is None:
            del cached
        longest = options.max_new_tokens + (prompt if prompts is None else 0)
        state = _read(model, rows, max(1, longest - 1))
        live.reset()
        logits = state.step(torch.zeros(rows, dtype=torch.long)).float()
        sample_tokens(logits, torch.zeros(rows, dtype=torch.float64), options.temperature, options.top_p)
        return int(max(prefill_peak, live.peak) - weights)


def _read(model: nn.Module, rows: int, length: int) -> DecoderState:
    """What is cached of so many tokens."""
    state = outlined_state(model, 1)
    state.prefill(torch.zeros(rows, length, dtype=torch.long), None, length)
    state.start(None, torch.full((rows,), length), 1)
    return state


def _batch(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    mask = torch.ones(shape.rows, shape.length, dtype=torch.bool)
    first = shape.length - shape.acted
    state = torch.arange(first - 1, shape.length - 1).expand(shape.rows, -1)
    return tokens, mask, state, tokens[:, first:]


def _inputs(model: nn.Module, tokens: Tensor, shape: Shape) -> tuple[dict[str, Any], Tensor]:
    """What the model is given, and the places [B] where rows begin in what comes out of it."""
    plain = {"input_ids": tokens, "use_cache": False}, torch.arange(shape.rows) * shape.length
    if shape.prompts is None or not shares_prompts(model):
        return plain
    before, width = shape.length - shape.acted - 1, shape.acted + 1
    if not pays(shape.prompts * before + shape.rows * width, shape.rows * shape.length):
        return plain
    rows = torch.arange(shape.rows)
    prompts = Prompts(
        tokens.new_zeros(shape.prompts, before),
        rows * shape.prompts // shape.rows,
        torch.full_like(rows, before),
        torch.full_like(rows, width),
    )
    return prefill_shared(model, tokens, prompts, width)


def _one_surrogate(logprob: Tensor) -> Tensor:
    rows = logprob[None]
    every = torch.ones_like(rows, dtype=torch.bool)
    return clipped_surrogate_loss(rows, rows.detach(), torch.zeros_like(rows).detach(), every, 1.0, 0.2)[0]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
