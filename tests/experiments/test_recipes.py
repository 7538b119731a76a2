"""What an experiment reads from recipes, and what it writes."""

from pathlib import Path

import pytest
import yaml

from dpr_lightning.data.precomputed import hashed_options
from dpr_lightning.experiments.recipes import answers_of
from dpr_lightning.rollouts import SamplingOptions

CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "dpr.yaml"


@pytest.mark.parametrize("strings", [[], ["\n\n", "Q:"]])
def test_answers_end_where_the_config_has_it(strings: list[str]) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    if strings:
        config["data"]["init_args"]["sampling"]["stop_strings"] = strings
    answers = answers_of(config)
    assert answers == SamplingOptions(96, stop_strings=tuple(strings))
    # Precomputed rollouts are others with others; those without are what they were before there were any.
    assert hashed_options(answers).get("stop_strings", []) == strings
    assert ("stop_strings" in hashed_options(answers)) == bool(strings)
