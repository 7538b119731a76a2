"""Names that other programs call, with the arguments they call them by; and names that lead to one definition."""

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import dpr_lightning
from dpr_lightning import callbacks, data, functional, modules, rewards

FOLDERS = [Path(module.__file__).parent for module in (dpr_lightning, callbacks) if module.__file__]
SOURCES = sorted({path.resolve() for folder in FOLDERS for path in folder.rglob("*.py") if path.stem != "__init__"})

SIGNATURES = {
    "token_logprobs": ["logits", "tokens"],
    "returns_to_go": ["reward", "mask", "discount"],
    "baseline_relative_reward": ["policy_logprob", "reference_logprobs", "reduction", "coefficient"],
    "iq_learn_loss": [
        *("logits", "tokens", "mask", "terminated"),
        *("discount", "value_form", "chi2_alpha", "temperature"),
    ],
    "reinforce_loss": ["logprob", "advantage", "mask", "num_tokens"],
    "all_actions_loss": ["logprobs", "reward", "mask", "num_tokens"],
    "leave_one_out_baseline": ["returns", "mask", "group_size"],
    "shape_reward": ["reward", "potential", "mask", "terminated", "discount"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_functional_names_and_the_order_of_their_arguments(name: str) -> None:
    parameters = list(inspect.signature(getattr(functional, name)).parameters)
    assert parameters[: len(SIGNATURES[name])] == SIGNATURES[name]


def test_float64_stays_float64() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    tokens, mask = torch.randint(5, (2, 3)), torch.ones(2, 3, dtype=torch.bool)
    logprob = functional.token_logprobs(logits, tokens)
    result = {
        "token_logprobs": logprob,
        "returns_to_go": functional.returns_to_go(logprob, mask),
        "baseline_relative_reward": functional.baseline_relative_reward(logprob, logprob.unsqueeze(0) - 1),
        "iq_learn_loss": functional.iq_learn_loss(logits, tokens, mask, torch.tensor([True, False])),
        "reinforce_loss": functional.reinforce_loss(logprob, logprob, mask, 6),
        "all_actions_loss": functional.all_actions_loss(logits.log_softmax(-1), logits, mask, 6),
        "leave_one_out_baseline": functional.leave_one_out_baseline(logprob, mask, 2),
        "shape_reward": functional.shape_reward(
            logprob, torch.zeros(2, 4, dtype=torch.float64), mask, torch.tensor([True, False]), 1.0
        ),
    }
    assert set(result) == set(SIGNATURES)
    assert all(value.dtype == torch.float64 for value in result.values())


def test_classes_are_where_they_are_looked_for() -> None:
    for module, names in (
        (modules, ("SupervisedIRL", "DensePathReinforce")),
        (data, ("DemonstrationDataModule", "RewardDataModule")),
        (rewards, ("DenseReward",)),
    ):
        assert all(inspect.isclass(getattr(module, name)) for name in names)


def _shared(names: list[tuple[str, Path]]) -> dict[str, list[str]]:
    """Names that several files have, with their paths."""
    paths = defaultdict(list)
    for name, path in names:
        paths[name].append(str(path))
    return {name: where for name, where in paths.items() if len(where) > 1}


def test_no_two_files_have_the_same_name() -> None:
    assert len(SOURCES) > 200
    assert not _shared([(path.stem, path) for path in SOURCES])


def test_no_two_classes_have_the_same_name() -> None:
    trees = [(ast.parse(path.read_text(encoding="utf-8")), path) for path in SOURCES]
    assert not _shared([
        (node.name, path) for tree, path in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "most"), [(r"\b(?:get|has)attr\(", 5), (r"#\s*type:\s*ignore", 25)], ids=["attributes", "types"]
)
def test_attributes_are_declared_and_types_are_checked(pattern: str, most: int) -> None:
    """What an object has is a matter of its type: a Protocol, a base class, or a reader of foreign configurations."""
    lines = [line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines()]
    uses = [line.strip() for line in lines if re.search(pattern, line)]
    assert len(uses) <= most, uses
