"""The dense reward against two plain forward passes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.errors import InputError
from dpr_lightning.functional import FORMS
from dpr_lightning.policies import FrozenPolicies, PolicySpec, build_policy, load_tokenizer, save_policy
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rewards.cache import load_cached, store_cached

TOKENS = torch.randint(3, 60, (5, 9), generator=torch.Generator().manual_seed(5))
MASK = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 0],
                     [0, 1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0]]).bool()  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_policy_folder: Path) -> list[str]:
    """π_SFT and two weaker policies."""
    folders = [str(tiny_policy_folder)]
    for seed in (1, 2):
        model, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
        folder = tmp_path_factory.mktemp("reference") / "policy"
        folders.append(str(save_policy(model, tokenizer, folder, PolicySpec(source=folders[0]))))
    return folders


@pytest.fixture(scope="module")
def distributions(folders: list[str]) -> torch.Tensor:
    """log π of every model over every token after every prefix: [3, B, L - 1, V]."""
    with torch.no_grad():
        models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
        return torch.stack([model(TOKENS).logits.log_softmax(-1)[:, :-1] for model in models])


def plain(distributions: torch.Tensor, row: int) -> torch.Tensor:
    """log π of a row's acted tokens under every model: [3, n]."""
    indices = MASK[row].nonzero().squeeze(1)
    return distributions[:, row, indices - 1, TOKENS[row, indices]]


@pytest.mark.parametrize("reduction", ["mean_logprob", "mean_prob", "min", "mean_minus_std"])
@pytest.mark.parametrize("references", [1, 2])
def test_score_is_that_of_plain_forward_passes(
    reduction: str, references: int, folders: list[str], distributions: torch.Tensor
) -> None:
    spec = RewardSpec(reduction=reduction, coefficient=0.5)  # type: ignore[arg-type]
    scores = DenseReward.from_folders(folders[0], folders[1 : 1 + references], spec).score(
        TOKENS, MASK, token_budget=20
    )
    for row in range(len(TOKENS)):
        policy, *logprobs = plain(distributions, row)[: 1 + references]
        ratio = policy - torch.stack(logprobs)
        expected = {
            "mean_logprob": ratio.mean(0),
            "mean_prob": policy - torch.stack(logprobs).exp().mean(0).log(),
            "min": ratio.amin(0),
            "mean_minus_std": ratio.mean(0) - 0.5 * ratio.std(0, correction=0),
        }[reduction]
        count = len(policy)
        assert scores.mask[row].tolist() == [True] * count + [False] * (scores.mask.shape[1] - count)
        torch.testing.assert_close(scores.reward[row, :count], expected, atol=2e-6, rtol=0)
        assert (scores.reward[row, count:] == 0).all()


def test_divergence_and_centred_forms(folders: list[str], distributions: torch.Tensor) -> None:
    spec = RewardSpec(form="one_sided_centred")
    scores = DenseReward.from_folders(folders[0], folders[1:2], spec).score(TOKENS, MASK)
    policy, reference, _ = distributions
    divergence = (policy.exp() * (policy - reference)).sum(-1)
    for row in range(len(TOKENS)):
        indices = MASK[row].nonzero().squeeze(1)
        expected = divergence[row, indices - 1]
        torch.testing.assert_close(scores.divergence[row, : len(indices)], expected, atol=2e-6, rtol=0)
        ratio = plain(distributions, row)[0] - plain(distributions, row)[1]
        torch.testing.assert_close(
            scores.reward[row, : len(indices)], (ratio - expected).clamp(max=0), atol=2e-6, rtol=0
        )


@pytest.mark.parametrize("form", FORMS)
def test_rewards_of_all_actions_hold_those_of_the_sampled_ones(form: str, folders: list[str]) -> None:
    dense = DenseReward.from_folders(folders[0], folders[1:], RewardSpec(form=form))  # type: ignore[arg-type]
    scores = dense.score(TOKENS, MASK)
    same, actions = dense.score_actions(TOKENS, MASK)
    torch.testing.assert_close(same.reward, scores.reward, atol=2e-6, rtol=0)
    torch.testing.assert_close(same.reference_logprobs, scores.reference_logprobs, atol=2e-6, rtol=0)
    some = torch.tensor([2, 0])
    for rows, selection in (
        (torch.arange(len(TOKENS)), actions),
        (some, actions.take(some, int(MASK[some].sum(1).max()))),
    ):
        width = selection.states[0].hidden.shape[1]
        for row, whole in enumerate(rows.tolist()):
            tokens = TOKENS[whole, MASK[whole]]
            every = selection.scores(row * width + torch.arange(len(tokens)))
            picked = [part.gather(-1, tokens[:, None]).squeeze(-1) for part in every]
            for result, expected in zip(
                picked, (scores.reward, scores.policy_logprob, scores.reference_logprobs.mean(0)), strict=True
            ):
                torch.testing.assert_close(result, expected[whole, : len(tokens)], atol=2e-6, rtol=0)


def test_score_does_not_depend_on_the_token_budget(folders: list[str]) -> None:
    dense = DenseReward.from_folders(folders[0], folders[1:2])
    ours, theirs = dense.score(TOKENS, MASK, token_budget=1), dense.score(TOKENS, MASK, token_budget=10_000)
    torch.testing.assert_close(ours.reward, theirs.reward, atol=2e-6, rtol=0)


def test_a_mixture_of_forms_is_their_weighted_sum(folders: list[str]) -> None:
    def score(form: object) -> torch.Tensor:
        return DenseReward.from_folders(folders[0], folders[1:2], RewardSpec(form=form)).score(TOKENS, MASK).reward  # type: ignore[arg-type]

    mixed = score({"one_sided": 1.0, "log_policy": 0.5})
    torch.testing.assert_close(mixed, score("one_sided") + 0.5 * score("log_policy"))


def test_a_reference_with_the_same_weights_is_refused(folders: list[str], tmp_path: Path) -> None:
    model, tokenizer = build_policy(PolicySpec(source=folders[0]))
    copy = save_policy(model, tokenizer, tmp_path / "copy", PolicySpec(source=folders[0]))
    with pytest.raises(InputError, match="every reward is 0"):
        DenseReward.from_folders(folders[0], [str(copy)]).score(TOKENS, MASK)
    with pytest.raises(InputError, match="is π_SFT itself"):
        DenseReward.from_folders(folders[0], [folders[0] + "/."])


def test_damaged_weights_are_not_a_reward(folders: list[str]) -> None:
    models = {name: AutoModelForCausalLM.from_pretrained(folders[0]) for name in ("sft", "reference")}
    with torch.no_grad():
        next(models["reference"].parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        DenseReward(FrozenPolicies(models)).score(TOKENS, MASK)


def test_a_cache_is_refused_when_anything_it_depends_on_differs(tmp_path: Path) -> None:
    folder, tensors = tmp_path / "cache", {"reward": torch.arange(4.0)}
    key = {"sft": "abc", "sampling": {"temperature": 1.0}, "seed": 0}
    assert load_cached(folder, key) is None
    store_cached(folder, key, tensors)
    saved = load_cached(folder, key)
    assert saved is not None
    assert torch.equal(saved["reward"], tensors["reward"])
    with pytest.raises(InputError, match=r"(?s)sampling: .*1\.0.*0\.5"):
        load_cached(folder, key | {"sampling": {"temperature": 0.5}})


def test_a_damaged_cache_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store_cached(folder, {"seed": 0}, {"reward": torch.arange(4.0)})
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum"):
        load_cached(folder, {"seed": 0})


def test_a_full_disk_leaves_nothing_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    store_cached(folder, {"seed": 0}, {"reward": torch.arange(4.0)})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpr_lightning.rewards.cache.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        store_cached(folder, {"seed": 1}, {"reward": torch.zeros(4)})
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert load_cached(folder, {"seed": 0}) is not None


def test_one_of_several_references_may_not_be_sft(folders: list[str], tmp_path: Path) -> None:
    model, tokenizer = build_policy(PolicySpec(source=folders[0]))
    copy = save_policy(model, tokenizer, tmp_path / "copy", PolicySpec(source=folders[0]))
    with pytest.raises(InputError, match="reference number 2 of 2"):
        DenseReward.from_folders(folders[0], [folders[1], str(copy)]).score(TOKENS, MASK)


@pytest.mark.parametrize("excluded_by_sft", [True, False])
def test_a_token_that_only_the_reference_excludes(excluded_by_sft: bool, folders: list[str]) -> None:
    """An infinite reward of a token that π_SFT may choose is an error; of one that it never chooses it is nothing."""

    class Excluding(torch.nn.Module):
        """A head that gives token 5 no probability."""

        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(hidden)
            return logits.index_fill(-1, torch.tensor([5]), float("-inf"))

    models = {
        name: AutoModelForCausalLM.from_pretrained(folder) for name, folder in zip(("sft", "r"), folders, strict=False)
    }
    for name, model in models.items():
        if name == "r" or excluded_by_sft:
            model.set_output_embeddings(Excluding(model.get_output_embeddings()))
    dense, tokens = DenseReward(FrozenPolicies(models), RewardSpec()), TOKENS.masked_fill(TOKENS == 5, 6)
    dense.score(tokens, MASK)
    if excluded_by_sft:
        reward = dense.score_actions(tokens, MASK)[1].scores(torch.arange(3)).reward
        assert reward[..., 6].isfinite().all()
    else:
        with pytest.raises(InputError, match="not finite"):
            dense.score_actions(tokens, MASK)[1].scores(torch.arange(3))


def test_output_heads_of_different_widths_are_refused_where_distributions_are_compared(
    folders: list[str], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    tokens = model.config.vocab_size
    model.resize_token_embeddings(tokens + 7)
    wider = str(tmp_path / "wider")
    model.save_pretrained(wider)
    load_tokenizer(folders[1]).save_pretrained(wider)
    DenseReward.from_folders(folders[0], [wider], RewardSpec("one_sided")).score(TOKENS, MASK)
    with pytest.raises(InputError, match=rf"{tokens}, {tokens + 7} tokens.*resize_token_embeddings\({tokens}\)"):
        DenseReward.from_folders(folders[0], [wider]).score(TOKENS, MASK)
    model.resize_token_embeddings(tokens)
    model.save_pretrained(wider)
    DenseReward.from_folders(folders[0], [wider]).score(TOKENS, MASK)


def test_tokens_of_probability_one_under_both_are_no_sign_of_equal_models(folders: list[str]) -> None:
    dense = DenseReward.from_folders(folders[0], folders[1:2])
    certain, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    dense._check_different(certain, certain.unsqueeze(0), mask)
    with pytest.raises(InputError, match="every reward is 0"):
        dense._check_different(certain - 1, certain.unsqueeze(0) - 1, mask)
