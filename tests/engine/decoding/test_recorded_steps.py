"""Replayed decoding steps against ordinary ones, with a stand-in for CUDA graphs."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from dpr_lightning.engine import action_logits
from dpr_lightning.engine.decoding import recorded_steps
from dpr_lightning.engine.decoding.kv_cache import PreallocatedKVLayer
from dpr_lightning.functional import token_logprobs
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.types import Rollouts
from tests.engine.decoding import graph_on_a_cpu
from tests.tiny import decoder, tiny_tokenizer, unknown_decoder, with_adapters

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [7], [9, 9, 4, 2]]
STOP, PAD = [1, 20, 25], 0
KINDS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: decoder("llama"),
    "llama_with_biases": lambda: decoder("llama", attention_bias=True, mlp_bias=True),
    "qwen3": lambda: decoder("qwen3", head_dim=32),
    "adapters": lambda: with_adapters(decoder("llama")),
    "bfloat16": lambda: decoder("llama").bfloat16(),
}


class Record:
    """Counts captures and replays."""

    def __init__(self) -> None:
        self.tried, self.captured, self.played = 0, 0, 0
        self.alive: list[weakref.ref[Any]] = []

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """Capture on the CPU stand-in."""
        self.tried += 1
        assert device.type == "cpu"
        recording = graph_on_a_cpu.capture(function)
        self.captured += 1
        self.alive.append(weakref.ref(recording))

        def play() -> None:
            self.played += 1
            recording()

        return play


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """A CPU stand-in for graphs; turned on by :func:`both`."""
    record = Record()
    monkeypatch.setattr(recorded_steps, "capture", record.capture)
    monkeypatch.setattr(recorded_steps, "_CAPACITY", 12)
    return record


@pytest.fixture
def both(record: Record, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Rollouts, Rollouts]]:
    """Answers by ordinary steps, and by replayed ones."""

    def sample_both(model: nn.Module, options: SamplingOptions, **more: Any) -> tuple[Rollouts, Rollouts]:
        result = []
        for graphs in (False, True):
            monkeypatch.setattr(recorded_steps, "has_graphs", lambda device, graphs=graphs: graphs)
            arguments = {"stop_tokens": STOP, "pad_token": PAD, "seed": 3} | more
            result.append(sample(model, PROMPTS, options, **arguments))
        return result[0], result[1]

    return sample_both


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def expect_the_same(plain: Rollouts, recorded: Rollouts, allowed: float = 2e-5) -> None:
    assert torch.equal(plain.tokens, recorded.tokens)
    assert torch.equal(plain.mask, recorded.mask)
    assert torch.equal(plain.terminated, recorded.terminated)
    torch.testing.assert_close(plain.logprob, recorded.logprob, atol=allowed, rtol=0)


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bfloat16"])
def test_answers_are_the_same(kind: str, samples: int, both: Any, record: Record) -> None:
    """With rows that end, columns that are used up, and a rest too short for a capture."""
    plain, recorded = both(model_of(kind), SamplingOptions(60), num_samples=samples, stop_tokens=[1])
    expect_the_same(plain, recorded)
    assert record.captured > 1
    assert record.played > 25


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7}, {"top_p": 0.8}, {"batch_size": 7}])
def test_however_tokens_are_drawn(options: dict[str, Any], both: Any, record: Record) -> None:
    expect_the_same(*both(model_of("llama"), SamplingOptions(40, **options), num_samples=3))
    assert record.played > 15


def test_prompts_of_one_length_need_no_mask(both: Any, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PROMPTS", [[5, 6, 7], [8, 9, 10], [3, 3, 3]])
    for samples in (1, 4):
        expect_the_same(*both(model_of("llama"), SamplingOptions(40), num_samples=samples))
    assert record.played > 15


def test_stop_strings_end_answers(both: Any, record: Record) -> None:
    tokenizer = tiny_tokenizer()
    model = decoder("llama").eval()
    model.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]
    options = SamplingOptions(40, stop_strings=("a", "1"))
    plain, recorded = both(model, options, num_samples=8, tokenizer=tokenizer, stop_tokens=[])
    expect_the_same(plain, recorded)
    assert plain.terminated.any()
    assert record.captured > 0


def test_in_half_precision_logprobs_are_those_of_a_fresh_pass(both: Any, record: Record) -> None:
    """Rounding may lead to other tokens; log-probabilities are still those of the tokens."""
    model = model_of("bfloat16")
    _, recorded = both(model, SamplingOptions(40), num_samples=6)
    scored = action_logits(model, recorded.tokens, recorded.mask)
    fresh = token_logprobs(scored.logits.float(), scored.tokens).detach()
    torch.testing.assert_close(recorded.logprob * scored.mask, fresh * scored.mask, atol=0.05, rtol=0)
    assert record.played > 10


def test_under_autocast_nothing_is_recorded(both: Any, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    """Under autocast every step would cast all weights, and rounding must not turn the one-token pass off."""
    with torch.autocast("cpu", torch.bfloat16):
        expect_the_same(*both(model_of("llama"), SamplingOptions(30), num_samples=4))
    assert record.tried == 0
    assert "does not compute what others do" not in caplog.text


def test_keys_of_another_type_are_kept_in_that_of_the_cache() -> None:
    """Norms of queries and keys give float32 on a GPU under autocast."""
    layer = PreallocatedKVLayer(9)
    new = torch.randn(2, 3, 1, 4)
    layer.update(new.bfloat16(), new.bfloat16())
    layer.reserve(2, 4)
    keys, _ = layer.write(new, new, torch.tensor([1]))
    assert torch.equal(keys[:, :, 1:2], new.bfloat16())


def test_what_follows_the_end_of_an_answer_may_be_no_number(both: Any, record: Record) -> None:
    model = model_of("llama")
    with torch.no_grad():
        for token in STOP[1:]:  # which is read only where a row goes on behind its end
            model.get_input_embeddings().weight[token] = torch.nan  # type: ignore[operator, union-attr, index]
    plain, recorded = both(model, SamplingOptions(40), num_samples=6, stop_tokens=STOP[1:])
    expect_the_same(plain, recorded)
    assert recorded.terminated.any()
    assert record.played > 10


def test_the_answers_end_is_followed_by_padding(both: Any, record: Record) -> None:
    """Rows are decoded for some steps after their end."""
    _, recorded = both(model_of("llama"), SamplingOptions(40), num_samples=6)
    assert recorded.terminated.any()
    for tokens, mask in zip(recorded.tokens, recorded.mask, strict=True):
        last = int(mask.nonzero().max())
        assert (tokens[last + 1 :] == PAD).all()
        assert not mask[last + 1 :].any()


def test_few_rows_are_written_in_vain(both: Any, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lengths of an untrained policy's answers, few steps are wasted and few graphs captured."""
    monkeypatch.setattr(recorded_steps, "_CAPACITY", 128)
    rows = 0
    sampled = recorded_steps.GraphSteps.next

    def count(self: Any, tokens: torch.Tensor, uniform: torch.Tensor) -> Any:
        nonlocal rows
        rows += len(tokens)
        return sampled(self, tokens, uniform)

    monkeypatch.setattr(recorded_steps.GraphSteps, "next", count)
    _, recorded = both(model_of("llama"), SamplingOptions(100), num_samples=40, stop_tokens=[1])
    needed = int(recorded.mask.sum()) - len(recorded.mask)  # reading the prompt gave the first
    assert rows <= 1.2 * needed
    assert record.captured <= 12


def test_what_cannot_be_recorded_is_done_step_by_step(
    both: Any, record: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    rotary = model.model.rotary_emb  # type: ignore[union-attr]
    forward, seen = rotary.forward, []

    def asking(hidden: Any, position_ids: torch.Tensor) -> Any:
        seen.append(int(position_ids.max()))  # as `rope_type: dynamic` does
        return forward(hidden, position_ids)

    monkeypatch.setattr(rotary, "forward", asking)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            expect_the_same(*both(model, SamplingOptions(40, batch_size=6), num_samples=3))
    assert record.played == 0
    assert record.tried == 1  # and never again
    assert sum("could not be captured" in entry.message for entry in caplog.records) == 1
    assert "DPR_GRAPHS=1" in caplog.text


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("wrong", ["nothing", "twice", "other"])
def test_a_recording_that_does_something_else_is_not_used(
    wrong: str,
    samples: int,
    both: Any,
    record: Record,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a graph captured on another device, which does nothing."""

    def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        if wrong == "other":
            with monkeypatch.context() as patch:
                patch.setattr(recorded_steps.GraphSteps, "_sample", lambda _, logits, u: (logits.argmin(-1), u.float()))
                return record.capture(function, device)
        play = record.capture(function, device)

        def played() -> None:
            for _ in range(2 if wrong == "twice" else 0):
                play()

        return played

    monkeypatch.setattr(recorded_steps, "capture", capture)
    with caplog.at_level(logging.WARNING):
        expect_the_same(*both(model_of("llama"), SamplingOptions(40), num_samples=samples))
    assert record.tried == 1
    assert "gave other results" in caplog.text


@pytest.mark.parametrize("how", ["unknown", "combined", "short", "dynamic"])
def test_who_is_not_recorded(how: str, both: Any, record: Record) -> None:
    model = unknown_decoder().eval() if how == "unknown" else model_of("llama")
    if how == "dynamic":  # asks how long the longest row is
        model = decoder("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}).eval()
    more = {"combine": lambda logprobs: logprobs[0]} if how == "combined" else {}
    plain, recorded = both(model, SamplingOptions(8 if how == "short" else 30), num_samples=2, **more)
    expect_the_same(plain, recorded)
    assert record.tried == 0


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without reference cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_recordings_and_their_memory_are_let_go(both: Any, record: Record, no_collector: None) -> None:
    both(model_of("llama"), SamplingOptions(60), num_samples=4)
    assert record.captured > 0
    assert all(reference() is None for reference in record.alive)


def test_the_stand_in_plays_on_the_same_memory_or_fails() -> None:
    arguments, into = [torch.ones(3)], torch.zeros(3)

    def step() -> None:
        into.add_(arguments[0] * 2)

    play = graph_on_a_cpu.capture(step)
    assert (into == 0).all()  # recorded without effect
    arguments[0] += 1
    play()
    play()
    assert (into == 8).all()
    arguments.clear()
    with pytest.raises(AssertionError, match="memory that was freed"):
        play()
    with pytest.raises(RuntimeError, match="not permitted"):
        graph_on_a_cpu.capture(lambda: into.fill_(into.sum().item()) and None)
