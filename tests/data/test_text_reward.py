"""The rewards of texts against two plain forward passes over the tokens that training would use."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning import DenseReward, RewardSpec
from dpr_lightning.check_result import CheckResult
from dpr_lightning.data import carried_format, to_demonstration, tokenize_examples
from dpr_lightning.data.row_types import Row
from dpr_lightning.errors import InputError
from dpr_lightning.run_manifest import record_stage
from tests.tiny import write_decoder
from tests.training import write_weaker_policy

PROMPTS = ["1 + 1 =", "20 + 3 ="]
COMPLETIONS = ["Answer: 2", "23"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_policy_folder: Path) -> tuple[str, str]:
    reference = write_weaker_policy(tiny_policy_folder, tmp_path_factory.mktemp("reference") / "policy")
    return str(tiny_policy_folder), reference


@pytest.fixture(scope="module")
def reward(folders: tuple[str, str]) -> DenseReward:
    return DenseReward.from_folders(folders[0], [folders[1]], RewardSpec("log_ratio"))


@pytest.fixture(scope="module")
def chat_folders(tmp_path_factory: pytest.TempPathFactory, folders: tuple[str, str]) -> tuple[str, str]:
    """The same policies with a chat template."""
    root = tmp_path_factory.mktemp("chat")
    for name, folder in zip(("sft", "reference"), folders, strict=True):
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(root / name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(root / name)
    return str(root / "sft"), str(root / "reference")


def log_ratio(folders: tuple[str, str], tokens: list[int], mask: list[bool]) -> list[float]:
    """log π_SFT − log π_ref of the masked tokens of one sequence."""
    with torch.no_grad():
        logprobs = [
            AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([tokens])).logits[0].log_softmax(-1)
            for folder in folders
        ]
    positions = [index for index, acted in enumerate(mask) if acted]
    return [float(logprobs[0][at - 1, tokens[at]] - logprobs[1][at - 1, tokens[at]]) for at in positions]


def assert_close(scored: Any, expected: list[float]) -> None:
    """Rewards, with the texts of their tokens or without."""
    rewards = [part[1] if isinstance(part, tuple) else part for part in scored]
    torch.testing.assert_close(torch.tensor(rewards), torch.tensor(expected), atol=1e-5, rtol=0)


def test_plain_texts_are_scored_with_the_token_that_ends_them(folders: tuple[str, str], reward: DenseReward) -> None:
    scores = reward.score_texts(PROMPTS, COMPLETIONS)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    for prompt, completion, scored in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        assert [text for text, _ in scored] == [*completion, tokenizer.eos_token]  # a token a character
        ids, answer = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        tokens = [*ids, *answer, tokenizer.eos_token_id]
        assert_close(scored, log_ratio(folders, tokens, [False] * len(ids) + [True] * (1 + len(answer))))


def test_a_budget_changes_no_score(reward: DenseReward) -> None:
    whole, small = (reward.score_texts(PROMPTS, COMPLETIONS, token_budget=budget) for budget in (None, 1))
    for first, second in zip(whole, small, strict=True):
        assert_close(first, [value for _, value in second])


def test_a_completion_that_was_cut_has_no_end(reward: DenseReward) -> None:
    whole, cut = reward.score_texts(PROMPTS, COMPLETIONS), reward.score_texts(PROMPTS, COMPLETIONS, ended=[True, False])
    assert cut[0] == whole[0]
    assert [text for text, _ in cut[1]] == ["2", "3"]
    assert_close(cut[1], [value for _, value in whole[1][:-1]])


def test_an_empty_completion_is_its_end_alone(reward: DenseReward) -> None:
    scored = reward.score_texts(PROMPTS[:1], [""])[0]
    assert len(scored) == 1
    assert reward.score_texts(PROMPTS[:1], [""], ended=[False]) == [[]]
    assert reward.score_texts([], []) == []


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("1 + 1 =", "Answer: 2"),
        ([{"role": "user", "content": "1 + 1 ="}], "Answer: 2"),
        ([{"role": "user", "content": "1 + 1 ="}], [{"role": "assistant", "content": "Answer: 2"}]),
    ],
    ids=["texts", "messages and a text", "messages"],
)
def test_chats_are_scored_as_they_are_trained_on(chat_folders: tuple[str, str], prompt: Any, completion: Any) -> None:
    reward = DenseReward.from_folders(chat_folders[0], list(chat_folders[1:]), RewardSpec("log_ratio"))
    scored = reward.score_texts([prompt], [completion])[0]
    row = Row("f", 1, {"prompt": "1 + 1 =", "completion": "Answer: 2"})
    form = carried_format(reward.tokenizer, chat_folders[0])
    trained = tokenize_examples([to_demonstration(row)], reward.tokenizer, form)[0]
    assert reward.tokenizer.decode(trained.tokens).startswith("u:1 + 1 =\na:Answer: 2")
    assert_close(scored, log_ratio(chat_folders, trained.tokens, trained.mask))


def test_sampled_ids_are_scored_as_they_are(chat_folders: tuple[str, str]) -> None:
    reward = DenseReward.from_folders(chat_folders[0], [chat_folders[1]], RewardSpec("log_ratio"))
    prompt, answer = [{"role": "user", "content": "1 + 1 ="}], [5, 7, 9]
    scored = reward.score_completion_ids([prompt, prompt], [answer, []])
    ids = reward.tokenizer("u:1 + 1 =\na:")["input_ids"]
    assert len(scored[0]) == 3
    assert scored[1] == []
    assert_close(scored[0], log_ratio(chat_folders, [*ids, *answer], [False] * len(ids) + [True] * 3))
    assert reward.score_ids([ids], [answer])[0] == scored[0]


def test_the_recommended_form_is_the_default(folders: tuple[str, str]) -> None:
    assert DenseReward.from_folders(folders[0], [folders[1]]).spec == RewardSpec.recommended()


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "message"),
    [
        (PROMPTS, COMPLETIONS[:1], {}, "2 prompts and 1 completions"),
        (PROMPTS, COMPLETIONS, {"ended": [True]}, "2 completions and 1 entries in `ended`"),
        (["1 =", " "], COMPLETIONS, {}, "pair:2 has an empty prompt"),
        ([[{"role": "user", "content": "1"}]], ["2"], {}, "pair:1 .*no chat template"),
        (["1 ="], [[{"role": "user", "content": "2"}]], {}, "pair:1: the completion does not end with a message of"),
        ([3], ["2"], {}, "pair:1 "),
    ],
)
def test_what_cannot_be_scored_is_named(
    prompts: Any, completions: Any, options: dict[str, Any], message: str, reward: DenseReward
) -> None:
    with pytest.raises(InputError, match=message):
        reward.score_texts(prompts, completions, **options)


def test_texts_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    folders = [write_decoder(tmp_path / name, "gpt2", n_embd=8, n_layer=1, n_head=1, n_positions=16) for name in "ab"]
    with pytest.raises(InputError, match=r"pair:2 has 22 tokens, prompt and completion.*Shorten it to at most 16"):
        DenseReward.from_folders(folders[0], folders[1:]).score_texts(["1", "1" * 20], ["2", "3"])


def test_ids_without_a_prompt_are_refused(reward: DenseReward) -> None:
    with pytest.raises(InputError, match="pair:2: the prompt has no tokens"):
        reward.score_ids([[5], []], [[6], [7]])


@pytest.fixture
def run(folders: tuple[str, str], tmp_path: Path) -> Path:
    """A run with references at a tenth, a quarter and a half."""
    policies = tmp_path / "sft" / "policies"
    shutil.copytree(folders[0], policies / "final")
    saved = {"step_0000010": 0.1, "step_0000025": 0.25, "step_0000050": 0.5}
    for name in saved:
        shutil.copytree(folders[1], policies / name)
    (policies / "references.json").write_text(json.dumps({**saved, "final": 1.0}))
    record_stage(tmp_path / "run.json", "sft", {"policies": str(policies)})
    return tmp_path


@pytest.mark.parametrize(("share", "name"), [(None, "step_0000025"), (0.6, "step_0000050"), (0.0, "step_0000010")])
def test_a_run_names_its_policies(run: Path, share: float | None, name: str) -> None:
    reward = DenseReward.from_run(str(run), reference=share)
    policies = run / "sft" / "policies"
    assert list(reward.frozen.folders.values()) == [str(policies / "final"), str(policies / name)]
    assert reward.spec == RewardSpec.recommended()


def test_what_a_check_found_is_the_default(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    CheckResult("train", reward={"form": "one_sided"}, reference="0.5").save(run)
    half = str(run / "sft" / "policies" / "step_0000050")
    with caplog.at_level(logging.INFO):
        reward = DenseReward.from_run(str(run))
    assert (reward.spec, reward.frozen.folders["reference_0"]) == (RewardSpec("one_sided"), half)
    assert f"The reward of {run} is one_sided against {half}, as `dpr check` found." in caplog.messages
    changed = DenseReward.from_run(str(run), "log_ratio", reference=0.1)
    assert changed.spec == RewardSpec("log_ratio")
    assert changed.frozen.folders["reference_0"].endswith("step_0000010")


def test_a_check_that_found_nothing_changes_no_form(run: Path) -> None:
    CheckResult("nothing_found", reference="0.1").save(run)
    reward = DenseReward.from_run(str(run))
    assert reward.spec == RewardSpec.recommended()
    assert reward.frozen.folders["reference_0"].endswith("step_0000010")


@pytest.mark.parametrize("content", ["[]", '{"outcome": "good"}', '{"outcome": "train", "reward": "one_sided"}'])
def test_a_damaged_check_is_named(run: Path, content: str) -> None:
    (run / "check").mkdir()
    (run / "check" / "check.json").write_text(content)
    with pytest.raises(InputError, match=r"check\.json is no result of `dpr check`\. Run it again\."):
        DenseReward.from_run(str(run))


@pytest.mark.parametrize("form", ["log_ratio", RewardSpec("log_ratio")])
def test_the_form_of_a_run_is_named(run: Path, reward: DenseReward, form: Any) -> None:
    scored = DenseReward.from_run(str(run), form).score_texts(PROMPTS, COMPLETIONS)
    for ours, theirs in zip(scored, reward.score_texts(PROMPTS, COMPLETIONS), strict=True):
        assert_close(ours, [value for _, value in theirs])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder of a run"):
        DenseReward.from_run(str(tmp_path))
