"""What stages read from a DPR config: the steps of SFT that its forward passes cost, where its answers end."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.data.precomputed import hashed_options
from dpr_lightning.experiments.recipes import DprSettings, equal_compute_steps
from dpr_lightning.rollouts import SamplingOptions

CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "dpr.yaml"


@pytest.mark.parametrize(
    ("estimator", "references", "refresh_every", "accumulate", "passes"),
    [
        ("all_actions", 1, 1, 1, 3 + 1 + 2),
        ("all_actions", 2, 1, 1, 3 + 1 + 3),
        ("all_actions", 1, 4, 1, 3 + (1 + 2) / 4),
        ("all_actions", 1, 1, 2, 3 + 1 + 2 + 2),
        ("reinforce", 1, 1, 2, 3 + 1 + 2),
    ],
)
def test_steps_of_sft_that_cost_as_much(
    estimator: str, references: int, refresh_every: int, accumulate: int, passes: float, tmp_path: Path
) -> None:
    """100 steps of 48 sequences, against batches of 16 that take three passes."""
    data = {"prompts_per_rollout": 24, "samples_per_prompt": 2, "refresh_every": refresh_every}
    dpr: dict[str, Any] = {
        "model": {"init_args": {"estimator": estimator}},
        "data": {"init_args": {**data, "references": ["folder"] * references}},
        "trainer": {"max_steps": 100, "accumulate_grad_batches": accumulate},
    }
    sft = {"data": {"init_args": {"batch_size": 8}}, "trainer": {"accumulate_grad_batches": 2}}
    for name, config in (("dpr", dpr), ("sft", sft)):
        (tmp_path / name).write_text(yaml.safe_dump(config))
    assert equal_compute_steps(tmp_path / "dpr", tmp_path / "sft") == 100 * passes


@pytest.mark.parametrize("strings", [[], ["\n\n", "Q:"]])
def test_answers_end_where_the_config_has_it(strings: list[str], tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    if strings:
        config["data"]["init_args"]["sampling"]["stop_strings"] = strings
    (tmp_path / "dpr.yaml").write_text(yaml.safe_dump(config))
    answers = DprSettings.read(tmp_path / "dpr.yaml").answers
    assert answers == SamplingOptions(96, stop_strings=tuple(strings))
    # Precomputed rollouts are others with others; those without are what they were before there were any.
    assert hashed_options(answers).get("stop_strings", []) == strings
    assert ("stop_strings" in hashed_options(answers)) == bool(strings)
