"""Forms of the token reward that other packages register."""

import math
from pathlib import Path

import pytest
import torch

from dpr_lightning.errors import InputError
from dpr_lightning.rewards import RewardSpec, decode_time_optimum
from dpr_lightning.rewards.forms import reward_of_logprobs

SOFT_CLIPPED = "tests.plugins.reinforce_entropy.soft_clipped"


def test_a_form_is_named_by_its_import_path() -> None:
    spec = RewardSpec({SOFT_CLIPPED: 2.0, "log_policy": 0.5}, clip_limit=3.0)
    policy, references = torch.tensor([[-1.0, -4.0]]), torch.tensor([[[-2.0, -2.0]]])
    expected = [2 * 3 * math.tanh(1 / 3) - 0.5, 2 * 3 * math.tanh(-2 / 3) - 2.0]
    torch.testing.assert_close(reward_of_logprobs(spec, policy, references, None), torch.tensor([expected]))
    assert not spec.needs_divergence
    # Beyond the limit the optimum no longer moves with r̂.
    far = torch.log_softmax(torch.tensor([[9.0, 0.0, -9.0]]), 1)
    flat = torch.log_softmax(torch.zeros(1, 3), 1)
    tilted = decode_time_optimum(RewardSpec(SOFT_CLIPPED, clip_limit=0.1), 1.0)([far, flat])
    assert (tilted - far).abs().max() < 0.11


def test_a_form_that_reads_the_divergence_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_with_divergence.py").write_text(
        "from dpr_lightning.rewards import RewardTerms, reward_form\n"
        "@reward_form(needs_divergence=True)\n"
        "def ratio(terms): return terms.log_ratio / (1 + terms.divergence)\n"
        "@reward_form()\n"
        "def total(terms): return terms.log_ratio.sum()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = RewardSpec("rewards_with_divergence.ratio")
    assert spec.needs_divergence
    policy, references, divergence = torch.tensor([[-1.0]]), torch.tensor([[[-3.0]]]), torch.tensor([[1.0]])
    assert reward_of_logprobs(spec, policy, references, divergence).item() == 1.0
    with pytest.raises(ValueError, match="pass divergence"):
        reward_of_logprobs(spec, policy, references, None)
    with pytest.raises(ValueError, match=r"'rewards_with_divergence\.total' returns a reward of each token"):
        reward_of_logprobs(RewardSpec("rewards_with_divergence.total"), policy, references, None)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("log_ratoi", "no reward form 'log_ratoi'. Forms of this package are: log_ratio, clipped"),
        ("no_such_module.form", "its module is not found"),
        ("tests.plugins.reinforce_entropy.brevity", r"register it with @reward_form\(\)"),
    ],
)
def test_unknown_forms_are_refused_with_the_remedy(form: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RewardSpec(form)
