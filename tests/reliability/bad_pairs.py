"""Wrong pairs of responses, with words of the error messages."""

from typing import Any

from tests.reliability.kit import Case, Kit
from tests.workspace import write_pairs_config, write_rows

PAIR = {"prompt": "1 + 1 =", "chosen": "Answer: 2", "rejected": "Answer: 30"}


def _pairs(kit: Kit, *rows: dict[str, Any], model: dict[str, Any] | None = None, **data: Any) -> list[str]:
    """`dpr fit` on a file of these pairs."""
    path = write_rows(kit.folder / "pairs.jsonl", list(rows))
    return ["fit", "--config", write_pairs_config(kit.folder, kit.workspace, path, model, **data)]


PAIR_CASES: dict[str, dict[str, Case]] = {
    "Pairs of responses": {
        "equal responses": Case(
            lambda kit: _pairs(kit, PAIR, PAIR | {"rejected": PAIR["chosen"]}),
            ("1 of 2 rows", "pairs.jsonl:2", "data.on_equal: drop"),
        ),
        "one response alone": Case(
            lambda kit: _pairs(kit, PAIR, {"prompt": "1 =", "chosen": "2"}), ("pairs.jsonl:2 has no 'rejected'",)
        ),
        "demonstrations in place of pairs": Case(
            lambda kit: _pairs(kit, {"prompt": "1 =", "completion": "2"}), ("pairs.jsonl:1 has no 'chosen'",)
        ),
        "an empty response": Case(
            lambda kit: _pairs(kit, PAIR, PAIR | {"rejected": " "}), ("pairs.jsonl:2 has an empty 'rejected'",)
        ),
        "pairs without rewards for `rebel`": Case(
            lambda kit: _pairs(kit, PAIR, model={"loss": "rebel"}), ("pairs.jsonl:1", "chosen_reward")
        ),
        "a reward that is not finite": Case(
            lambda kit: _pairs(
                kit, PAIR | {"chosen_reward": 1.0, "rejected_reward": float("inf")}, model={"loss": "rebel"}
            ),
            ("pairs.jsonl:1", "'rejected_reward'", "finite"),
        ),
        "no policy to compare pairs under": Case(
            lambda kit: _pairs(kit, PAIR, opponent=None), ("data.opponent", "model.policy.source")
        ),
        "an unknown loss of pairs": Case(lambda kit: _pairs(kit, PAIR, model={"loss": "orpo"}), ("orpo",)),
    }
}
