"""Tokens and log-probabilities that :func:`sample_tokens` returns, against float64."""

import pytest
import torch

from dpr_lightning.engine.decoding import sample_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 15, 16, 300, 5000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_invert_the_cumulative_distribution(columns: int, temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(40, columns, generator=generator)).to(dtype)
    uniform = torch.rand(40, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1.0 - 2**-53])
    exact = (logits.double() / temperature).log_softmax(-1)
    sampled, logprob = sample_tokens(logits, uniform, temperature)
    expected = exact.gather(1, sampled[:, None]).squeeze(1)
    torch.testing.assert_close(logprob.double(), expected, atol=2e-6, rtol=0)
    until = exact.exp().cumsum(-1).gather(1, sampled[:, None]).squeeze(1)
    before = until - expected.exp()
    assert ((before <= uniform + 1e-6) & (uniform <= until + 1e-6)).all()


def test_impossible_tokens_are_never_sampled_and_logits_that_are_no_numbers_are_visible() -> None:
    logits = torch.full((4, 600), float("-inf"))
    logits[:, 5], logits[:, 300] = 0.0, 0.0
    logits[2, 7], logits[3] = float("nan"), float("-inf")
    sampled, logprob = sample_tokens(logits, torch.tensor([0.0, 1.0 - 2**-53, 0.5, 0.5], dtype=torch.float64))
    assert sampled[:2].tolist() == [5, 300]
    assert logprob[2:].isnan().all()
    assert ((sampled >= 0) & (sampled < 600)).all()
    torch.testing.assert_close(logprob[:2], torch.full((2,), 0.5).log(), atol=1e-6, rtol=0)
