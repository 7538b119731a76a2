"""The heat-map of the README: what it says of wrong tokens is counted from the rewards."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyarrow
import pyarrow.parquet

from benchmarks.heatmap_figure import main
from tests.workspace import write_rows


def test_a_wrong_token_is_underlined_and_counted(tmp_path: Path) -> None:
    """Of two wrong answers the reward finds one token, and log π_SFT the other."""
    rows = [
        ("1:2>3\nAnswer: 3<eos>", 4, -0.1, 4),
        ("1:2>4\nAnswer: 4<eos>", 4, -0.9, 1),
        ("1:3>4\nAnswer: 4<eos>", 4, -0.9, 2),
    ]
    table = []
    for answer, lowest, reward, lowest_policy in rows:
        tokens = [*answer.removesuffix("<eos>"), "<eos>"]
        zeros = [0.0] * len(tokens)
        rewards, policy = zeros.copy(), zeros.copy()
        rewards[lowest], policy[lowest_policy] = reward, -2.0
        table.append(
            {
                "prompt": "1+2=",
                "tokens": tokens,
                "reward": rewards,
                "policy_logprob": policy,
                "reference_logprob": zeros,
            }
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rewards.parquet")
    truth = {"prompt": "1+2=", "completion": "1:2>3\nAnswer: 3", "answer": "3"}
    main(str(tmp_path / "map.svg"), str(tmp_path / "rewards.parquet"), write_rows(tmp_path / "d.jsonl", [truth] * 3))
    words = [element.text for element in ElementTree.parse(tmp_path / "map.svg").iter() if element.text]
    assert words.count("✗") == 2
    assert "−0.90 nats" in words
    assert "0.00 nats" in words
    assert "It is the lowest of the answer in 1 of 2 wrong ones (by log π_SFT alone: 1)." in words
