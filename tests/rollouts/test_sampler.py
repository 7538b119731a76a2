"""The sampler against a fresh forward pass, against its own distribution, and against other batches."""

from pathlib import Path

import pytest
import torch
from scipy import stats

from dpr_lightning.engine import action_logits, sequence_logprobs
from dpr_lightning.engine.decoding import sample_tokens
from dpr_lightning.engine.decoding.kv_cache import fill_gaps
from dpr_lightning.errors import InputError
from dpr_lightning.functional import token_logprobs
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rollouts import SamplingOptions, counter_uniform, sample, sample_keys
from dpr_lightning.rollouts.answers import Answers

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [7]]
# Several stop tokens, so that an untrained policy ends some of its answers.
STOP, PAD = [1, 20, 25, 30, 35, 40, 45, 50], 0


@pytest.fixture(scope="module")
def policy(tiny_policy_folder: Path) -> torch.nn.Module:
    model, _ = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    with torch.no_grad():
        # An untrained policy is nearly uniform; this one has tokens it likes.
        model.get_output_embeddings().weight.mul_(10.0)
    return model


def test_behaviour_logprobs_are_those_of_a_fresh_forward_pass(policy: torch.nn.Module) -> None:
    rollouts = sample(policy, PROMPTS, SamplingOptions(12), stop_tokens=STOP, pad_token=PAD, num_samples=6, seed=3)
    scored = action_logits(policy, rollouts.tokens, rollouts.mask)
    fresh = token_logprobs(scored.logits, scored.tokens).detach()
    assert rollouts.terminated.any()
    assert not rollouts.terminated.all()
    torch.testing.assert_close(rollouts.logprob * scored.mask, fresh * scored.mask, atol=2e-5, rtol=0)
    assert (rollouts.logprob[~scored.mask] == 0).all()


def test_a_sample_does_not_depend_on_its_batch(policy: torch.nn.Module) -> None:
    options = SamplingOptions(10)
    together = sample(policy, PROMPTS, options, stop_tokens=STOP, pad_token=PAD, num_samples=3, seed=1)
    for index, prompt in enumerate(PROMPTS):
        alone = sample(
            policy, [prompt], options, stop_tokens=STOP, pad_token=PAD, num_samples=3, seed=1, prompt_ids=[index]
        )
        for row in range(3):
            ours = together.tokens[3 * index + row][together.mask[3 * index + row]]
            theirs = alone.tokens[row][alone.mask[row]]
            assert ours.tolist() == theirs.tolist()
    small = sample(
        policy, PROMPTS, SamplingOptions(10, batch_size=3), stop_tokens=STOP, pad_token=PAD, num_samples=3, seed=1
    )
    assert torch.equal(small.tokens, together.tokens)


def test_layout_of_prompt_answer_and_padding(policy: torch.nn.Module) -> None:
    rollouts = sample(policy, PROMPTS, SamplingOptions(9), stop_tokens=STOP, pad_token=PAD, num_samples=4)
    assert rollouts.prompt.tolist() == [index for index in range(4) for _ in range(4)]
    for row, prompt in enumerate(rollouts.prompt.tolist()):
        tokens, mask = rollouts.tokens[row].tolist(), rollouts.mask[row].tolist()
        start, count = len(PROMPTS[prompt]), sum(mask)
        assert tokens[:start] == PROMPTS[prompt]
        assert mask == [False] * start + [True] * count + [False] * (len(mask) - start - count)
        assert all(token == PAD for token in tokens[start + count :])
        assert (tokens[start + count - 1] in STOP) == bool(rollouts.terminated[row])
        assert rollouts.terminated[row] or count == 9
        assert not any(token in STOP for token in tokens[start : start + count - 1])


def test_first_token_follows_the_policy_and_matches_generate(policy: torch.nn.Module) -> None:
    count = 4000
    prompt = [5, 6, 7]
    ours = sample(
        policy, [prompt], SamplingOptions(1, batch_size=count), stop_tokens=STOP, pad_token=PAD, num_samples=count
    )
    theirs = policy.generate(
        torch.tensor([prompt]).repeat(count, 1), do_sample=True, max_new_tokens=1, top_k=0, pad_token_id=PAD
    )[:, 3]
    with torch.no_grad():
        probability = policy(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    saved = probability * count > 5
    for sampled in (ours.tokens[:, 3], theirs):
        seen = torch.bincount(sampled, minlength=len(probability)).double()
        observed = torch.cat([seen[saved], seen[~saved].sum(0, keepdim=True)])
        expected = torch.cat([probability[saved], probability[~saved].sum(0, keepdim=True)]) * count
        assert stats.chisquare(observed.numpy(), (expected / expected.sum() * observed.sum()).numpy()).pvalue > 1e-3


def test_greedy_equals_generate(policy: torch.nn.Module) -> None:
    rollouts = sample(policy, PROMPTS, SamplingOptions(8, temperature=0), stop_tokens=STOP, pad_token=PAD)
    for row, prompt in enumerate(PROMPTS):
        expected = policy.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=STOP, pad_token_id=PAD
        )[0]
        assert rollouts.tokens[row][: len(expected)].tolist() == expected.tolist()


def test_top_p_keeps_the_smallest_nucleus_and_reports_its_logprob() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(1000, 1)
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    tokens, logprob = sample_tokens(logits, uniform, top_p=0.8)
    assert set(tokens.tolist()) == {0, 1}
    torch.testing.assert_close(logprob[tokens == 0], torch.full_like(logprob[tokens == 0], 0.625).log())


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(2, 1)
    tokens, _ = sample_tokens(logits, torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [1, 3]


def test_temperature_enters_the_reported_logprob() -> None:
    logits = torch.randn(50, 7)
    tokens, logprob = sample_tokens(logits, torch.rand(50, dtype=torch.float64), temperature=0.5)
    expected = (logits / 0.5).log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logprob, expected)


@pytest.mark.parametrize("vocabulary", [7, 256, 1000])
def test_a_token_is_where_its_number_falls_in_the_distribution(vocabulary: int) -> None:
    count = 20_000
    logits = 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprob = sample_tokens(logits.expand(count, -1), uniform)
    probability = logits.double().softmax(-1)
    expected = torch.searchsorted(probability.cumsum(-1), uniform, right=True)
    # Sums in float32 move the borders between tokens a little.
    assert (tokens != expected).double().mean() < 1e-3
    assert (tokens - expected).abs().max() <= 1
    torch.testing.assert_close(logprob.double(), probability.log()[tokens], atol=1e-5, rtol=0)


def test_long_answers_of_many_lengths(policy: torch.nn.Module) -> None:
    """Keys and values outgrow their room, and rows take the places of others, over and over."""
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    rollouts = sample(policy, prompts, SamplingOptions(150), stop_tokens=STOP[:2], pad_token=PAD, num_samples=16)
    lengths = rollouts.mask.sum(1)
    assert int(lengths.max()) > 100
    assert len(lengths.unique()) > 15
    fresh = sequence_logprobs(policy.eval(), rollouts.tokens, rollouts.mask)
    torch.testing.assert_close(rollouts.logprob, fresh, atol=2e-5, rtol=0)


def test_few_rows_move_when_some_end() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ended = torch.rand(12, generator=generator) < 0.4
        order = fill_gaps(ended)
        assert sorted(order.tolist()) == (~ended).nonzero().squeeze(1).tolist()
        assert int((order != torch.arange(len(order))).sum()) <= int(ended.sum())


def test_counter_numbers_are_uniform_and_unrelated() -> None:
    prompt = torch.arange(200).repeat_interleave(10)
    key = sample_keys(7, prompt, torch.arange(10).repeat(200))
    first, second = counter_uniform(key, torch.tensor([3, 4])).unbind(1)
    assert torch.equal(counter_uniform(key[5:6], torch.tensor([4])).squeeze(1), second[5:6])
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.1
    assert len(first.unique()) == len(first)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1


def test_several_models_are_combined_token_by_token(policy: torch.nn.Module, tiny_policy_folder: Path) -> None:
    weak, _ = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    mixed = sample(
        [policy, weak],
        [[5, 6]],
        SamplingOptions(1),
        stop_tokens=STOP,
        pad_token=PAD,
        num_samples=5,
        combine=lambda logprobs: 1.5 * logprobs[0] - 0.5 * logprobs[1],
    )
    with torch.no_grad():
        strong, base = (model(torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1) for model in (policy, weak))
    expected = (1.5 * strong - 0.5 * base).log_softmax(-1)
    torch.testing.assert_close(mixed.logprob[:, 0], expected[mixed.tokens[:, 2]], atol=1e-5, rtol=0)


def test_an_empty_prompt_is_named() -> None:
    with pytest.raises(InputError, match="number 2 of 2"):
        sample(torch.nn.Linear(1, 1), [[1], []], SamplingOptions(2), stop_tokens=STOP, pad_token=PAD)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SamplingOptions(**options)  # type: ignore[arg-type]


def test_a_policy_that_diverged_is_not_sampled(tiny_policy_folder: Path) -> None:
    broken, _ = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(InputError, match=r"not numbers.*lower the learning rate"):
        sample(broken, PROMPTS, SamplingOptions(3), stop_tokens=STOP, pad_token=PAD)
    with pytest.raises(InputError, match="no prompts"):
        sample(broken, [], SamplingOptions(3), stop_tokens=STOP, pad_token=PAD)


def test_a_default_dtype_of_others_changes_no_number(policy: torch.nn.Module) -> None:
    """The half-precision plugins of a trainer set one, for all threads, while the policy learns."""
    options = {"stop_tokens": STOP, "pad_token": PAD, "num_samples": 2, "seed": 4}
    expected = sample(policy, PROMPTS, SamplingOptions(8), **options)  # type: ignore[arg-type]
    torch.set_default_dtype(torch.bfloat16)
    try:
        result = sample(policy, PROMPTS, SamplingOptions(8), **options)  # type: ignore[arg-type]
        listed = Answers.of([[1]], [[-8.03]], [True])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result.tokens, expected.tokens)
    assert torch.equal(result.logprob, expected.logprob)
    assert torch.equal(listed.logprob, torch.tensor([[-8.03]]))
