"""Counts of listed rows and characters that are mistakes."""

from benchmarks.listed_mistakes import count


def test_rows_and_characters_are_counted_against_the_oracle() -> None:
    oracle = [{}, {"loss_spans": [{"start": 2, "end": 5}]}, {"loss_spans": [{"start": 0, "end": 1}]}]
    listed = [
        {"row": 2, "loss_spans": [{"start": 4, "end": 6}]},
        {"row": 1, "loss_spans": [{"start": 0, "end": 3}]},
        {"row": 3, "loss_spans": []},
    ]
    assert count(oracle, listed, 1) == (1, 2, 1, 4)
    assert count(oracle, listed, 3) == (2, 5, 1, 4)
