"""Comparisons of arms: which pairs, one seed and several, and the verdict that counts how many are shown."""

import dataclasses

import numpy as np
import pytest

from dpr_lightning.evaluation.comparisons import compare_arms, corrected, to_records
from dpr_lightning.evaluation.statistics import (
    PairedComparison,
    hierarchical_comparison,
    holm,
    paired_comparison,
    verdict,
)


def comparison(p_value: float, low: float = 0.006, high: float = 0.046) -> PairedComparison:
    return PairedComparison((low + high) / 2, 0.01, low, high, p_value, 2000)


def test_an_interval_without_0_is_no_proof_among_many() -> None:
    table = {f"arm_{index} - sft": {"sampled": comparison(0.012)} for index in range(12)}
    assert verdict(table["arm_0 - sft"]["sampled"]) == "better"
    for row in corrected(table).values():
        assert row["sampled"].p_holm == pytest.approx(12 * 0.012)
        assert row["sampled"].verdict == "no detectable difference"
    (alone,) = corrected({"arm_0 - sft": table["arm_0 - sft"]}).values()
    assert (alone["sampled"].p_holm, alone["sampled"].verdict) == (0.012, "better")


def test_each_measure_is_a_family_of_its_own() -> None:
    table = corrected(
        {
            "a - sft": {"sampled": comparison(0.01), "greedy": comparison(0.03)},
            "b - sft": {"sampled": comparison(0.03)},
            "c - sft": {"sampled": comparison(0.9, -0.1, 0.1)},
        }
    )
    p_values = [row["sampled"].p_holm for row in table.values()]
    assert p_values == pytest.approx(holm([0.01, 0.03, 0.9]).tolist())
    assert table["a - sft"]["greedy"].p_holm == 0.03
    assert {name: row["sampled"].verdict for name, row in table.items()} == {
        "a - sft": "better",
        "b - sft": "no detectable difference",
        "c - sft": "no detectable difference",
    }


def test_a_small_p_value_is_no_proof_where_the_interval_holds_0() -> None:
    (row,) = corrected({"a - sft": {"sampled": comparison(0.001, -0.001, 0.1)}}).values()
    assert row["sampled"].verdict == "no detectable difference"


def test_arms_are_compared_with_the_base_and_the_focus() -> None:
    generator = np.random.default_rng(0)
    scores = {
        name: [{"sampled": generator.random(40) + gain, "greedy": generator.random(40)} for _ in range(3)]
        for name, gain in (("sft", 0.0), ("dpr", 0.5), ("dft", 0.0))
    }
    scores["picked"] = [{"sampled": seed["sampled"]} for seed in scores["dft"]]  # without greedy answers
    table = compare_arms(scores, "sft", "dpr")
    assert list(table) == ["dpr - sft", "dft - sft", "picked - sft", "dpr - dft", "dpr - picked"]
    assert set(table["dpr - dft"]) == {"sampled", "greedy"}
    assert set(table["dpr - picked"]) == {"sampled"}
    pairs = [(ours["sampled"], theirs["sampled"]) for ours, theirs in zip(scores["dpr"], scores["dft"], strict=True)]
    expected = dataclasses.asdict(hierarchical_comparison(pairs))
    entry = to_records(table)["dpr - dft"]["sampled"]
    assert {key: entry[key] for key in expected} == expected
    assert entry["verdict"] == "better"
    one_seed = compare_arms({name: seeds[:1] for name, seeds in scores.items()}, "sft")
    assert list(one_seed) == ["dpr - sft", "dft - sft", "picked - sft"]
    assert (
        one_seed["dpr - sft"]["sampled"].low
        == paired_comparison(*(scores[n][0]["sampled"] for n in ("dpr", "sft"))).low
    )
