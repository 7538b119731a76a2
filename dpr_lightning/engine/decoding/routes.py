"""Which cache a model is sampled with: this package's, its library's, or none; decided by a trial."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.engine.decoding.cached_state import CachedState
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch, single_model
from dpr_lightning.engine.decoding.decoder_state import DecoderState, LibraryState, RecomputedState
from dpr_lightning.engine.decoding.kv_cache import fill_gaps
from dpr_lightning.engine.decoding.one_token import OneTokenPass, has_one_token_pass
from dpr_lightning.engine.half_precision import autocasts
from dpr_lightning.engine.kernels import has_kernels
from dpr_lightning.engine.known_decoders import inside_of_adapters, is_known_decoder
from dpr_lightning.engine.lockstep import Lockstep
from dpr_lightning.engine.model_mode import evaluating, has_content
from dpr_lightning.engine.weight_shards import fetches_weights
from dpr_lightning.errors import InputError

log = logging.getLogger(__name__)
OWN_CACHE, LIBRARY_CACHE, NO_CACHE = "own cache", "library's cache", "without a cache"
"""Names of the routes, fastest first."""
_STATES: dict[str, Callable[[nn.Module, int], DecoderState]] = {
    OWN_CACHE: CachedState,
    LIBRARY_CACHE: lambda model, _: LibraryState(model),
    NO_CACHE: lambda model, _: RecomputedState(model),
}
_REMEDY = "Choose a decoder, such as Llama, Qwen, Gemma or GPT-2, as `model.policy.source`."
_LENGTHS, _SAMPLES, _STEPS = (2, 7, 7), 2, 3
_PATHS = {
    OWN_CACHE: "its own forward pass and this package's key-value cache",
    LIBRARY_CACHE: "its own forward pass and its library's cache",
    NO_CACHE: "forward passes over whole rows, without a cache",
}
_routes: WeakKeyDictionary[nn.Module, "Route"] = WeakKeyDictionary()
_logged: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""What was logged of how a model decodes."""


@dataclass(frozen=True)
class Route:
    """How a model is sampled: ``name``, and why no faster route fits, in ``reason``; empty for the fastest."""

    name: str
    reason: str = ""


def sampling_route(model: nn.Module) -> Route:
    """The fastest route whose logits are those of forward passes over whole rows; tried once per model.

    The trial decodes a few tokens of prompts of different lengths, with two samples each and a row that ends. It is
    left out for known decoders, and where weights are sharded: there the configuration decides.

    Raises:
        InputError: there is none, because later tokens change the logits of earlier ones.
    """
    if model not in _routes:
        certain = is_known_decoder(model) or fetches_weights(model)
        route = _routes[model] = _route_by_config(model) if certain else _tried_route(model)
        if route.name == NO_CACHE:
            log.warning(
                "This %s is sampled without a cache, so that every token reads its whole row again, which is slow "
                "(%s).",
                _kind(model),
                route.reason,
            )
    return _routes[model]


class Decoder:
    """A model and how it is sampled, for the batches of one call.

    Args:
        model: its weights must not change while this is in use.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._route = model, sampling_route(model)
        one_token = self._route.name == OWN_CACHE and has_one_token_pass(model)
        self._one_token = OneTokenPass(model) if one_token else None
        self._log_path()

    def new_state(self, longest: int) -> DecoderState:
        """The state of a batch whose answers have at most ``longest`` tokens."""
        if self._one_token is not None:
            return CachedState(self._model, longest, self._one_token)
        return _STATES[self._route.name](self._model, longest)

    def _log_path(self) -> None:
        """Log how this model decodes; once a model, and again where it changes (hooks, weights in shards)."""
        path = _PATHS[self._route.name]
        if self._one_token is not None:
            weight = next(self._model.parameters())
            loops = "compiled kernels" if has_kernels(weight.dtype, weight.device) else "PyTorch's operations"
            path = f"this package's one-token pass and key-value cache, with {loops}"
        if _logged.get(self._model) != path:
            _logged[self._model] = path
            because = f" ({self._route.reason})" if self._route.reason else ""
            log.info("This %s decodes by %s%s.", _kind(self._model), path, because)

    @property
    def recomputes(self) -> bool:
        """Whether every token reads its whole row again."""
        return self._route.name == NO_CACHE


def reads_equal_lengths(states: list[DecoderState]) -> bool:
    """Whether a batch must have prompts of one length."""
    return not all(state.pads for state in states) and not all(state.joins for state in states)


def _route_by_config(model: nn.Module) -> Route:
    if is_known_decoder(model):
        return Route(OWN_CACHE)
    try:
        state = CachedState(model, 1)
    except Exception as error:  # a configuration may lack anything
        return Route(NO_CACHE, _sentence(error))
    return Route(OWN_CACHE) if state.pads else Route(NO_CACHE, "its recurrent layers were not tried in shards")


def _tried_route(model: nn.Module) -> Route:
    reasons = []
    with torch.no_grad(), evaluating([model]):
        prompts, answers = _probe_tokens(model)
        expected = _expected(model, prompts, answers)
        for name, new_state in _STATES.items():
            try:
                decoded = _decoded(partial(new_state, model, _STEPS + 1), prompts, answers)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # models reject a cache in many ways
                reasons.append(f"{name}: {_sentence(error)}")
                continue
            if not has_content(model) or _agree(decoded, expected, _is_exact(model)):
                return Route(name, "; ".join(reasons))
            reasons.append(f"{name}: its logits are not those of a forward pass over the whole row")
    raise InputError(
        f"This {_kind(model)} cannot be sampled from: a token's logits change with the tokens behind it, so it is no "
        f"causal language model. {_REMEDY}"
    )


def _probe_tokens(model: nn.Module) -> tuple[list[list[int]], Tensor]:
    """Prompts, and the tokens [rows, steps] decoded after them; no special token of the configuration among them."""
    config: Any = inside_of_adapters(model).config
    vocabulary = config.get_text_config().vocab_size
    special: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if name.endswith(("token_id", "token_index")):
                special.update(value if isinstance(value, list) else [value])
    usable = [token for token in range(min(vocabulary, 256)) if token not in special] or [0]
    number = iter(range(vocabulary * 100))

    def some(count: int) -> list[int]:
        return [usable[5 * step % len(usable)] for step in islice(number, count)]

    prompts = [some(length) for length in _LENGTHS]
    answers = torch.tensor([some(_STEPS) for _ in range(len(_LENGTHS) * _SAMPLES)])
    return prompts, answers.to(next(model.parameters()).device)


def _expected(model: nn.Module, prompts: list[list[int]], answers: Tensor) -> Tensor:
    """Logits [rows, steps + 1, V] of forward passes over whole rows, rows of one length in one pass."""
    logits = []
    for group in _groups(prompts):
        rows = [row for prompt in group for row in range(prompt * _SAMPLES, (prompt + 1) * _SAMPLES)]
        before = torch.tensor([prompts[row // _SAMPLES] for row in rows], device=answers.device)
        tokens = torch.cat([before, answers[rows]], 1)
        logits.append(model(input_ids=tokens, use_cache=False).logits[:, before.shape[1] - 1 :])
    return torch.cat(logits)


def _decoded(new_state: Callable[[], DecoderState], prompts: list[list[int]], answers: Tensor) -> Tensor:
    """The same logits by decoding; the first row of each batch ends after its first step, and has NaN from there."""
    logits: Tensor | None = None
    together = [list(range(len(prompts)))]
    for group in together if not reads_equal_lengths([new_state()]) else _groups(prompts):
        batch = DecodeBatch([new_state()], single_model, prompts[0][0], answers.device, Lockstep([]))
        rows = torch.arange(group[0] * _SAMPLES, (group[-1] + 1) * _SAMPLES, device=answers.device)
        result = batch.prefill([prompts[index] for index in group], _SAMPLES)
        if logits is None:
            logits = result.new_full((len(answers), _STEPS + 1, result.shape[-1]), torch.nan)
        for step in range(_STEPS):
            logits[rows, step] = result
            if step == 1:
                order = fill_gaps(torch.arange(len(rows), device=rows.device) == 0)
                batch.keep(order)
                rows = rows[order]
            result = batch.step(answers[rows, step])
        logits[rows, _STEPS] = result
    assert logits is not None
    return logits


def _groups(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of neighbours of one length."""
    return [list(group) for _, group in groupby(range(len(prompts)), key=lambda index: len(prompts[index]))]


def _agree(decoded: Tensor, expected: Tensor, exact: bool) -> bool:
    """Whether logits are equal up to rounding; in half precision most, for some tokens may go to other experts."""
    decoded, expected = decoded.float(), expected.float()
    spread = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    difference = (decoded - expected).abs().amax(-1)[~decoded.isnan().all(-1)]
    if exact:
        return bool((difference <= 1e-3 * spread + 1e-6).all())
    return bool((difference <= 5e-2 * spread).float().mean() >= 0.75)


def _is_exact(model: nn.Module) -> bool:
    dtype: torch.dtype = next(model.parameters()).dtype
    return torch.finfo(dtype).bits >= 32 and not autocasts()


def _kind(model: nn.Module) -> str:
    return str(inside_of_adapters(model).config.model_type)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
