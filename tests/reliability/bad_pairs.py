"""Wrong pairs of responses, with words of the error messages."""

import json
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.policies import create_toy_policy
from tests.heads import write_head
from tests.reliability.kit import Case, Kit
from tests.workspace import write_dpr_config, write_pairs_config, write_rows

PAIR = {"prompt": "1 + 1 =", "chosen": "Answer: 2", "rejected": "Answer: 30"}


VERIFIERS = "dpr_lightning.evaluation.verifiers"


def _pairs(kit: Kit, *rows: dict[str, Any], model: dict[str, Any] | None = None, **data: Any) -> list[str]:
    """`dpr fit` on a file of these pairs."""
    path = write_rows(kit.folder / "pairs.jsonl", list(rows))
    return ["fit", "--config", write_pairs_config(kit.folder, kit.workspace, path, model, **data)]


def _rebel(kit: Kit, data: dict[str, Any] | None = None, **model: Any) -> list[str]:
    """`dpr fit` of REBEL on rollouts."""
    options = {"samples_per_prompt": 2, "refresh_every": 2} | (data or {})
    path = write_dpr_config(kit.folder, kit.workspace, **options)
    config = yaml.safe_load(Path(path).read_text())
    config["model"] = {
        "class_path": "dpr_lightning.modules.RelativeRewardRegression",
        "init_args": {"policy": {"source": kit.workspace.sft}, **model},
    }
    Path(path).write_text(yaml.safe_dump(config))
    return ["fit", "--config", path]


def _label(kit: Kit, *options: str) -> list[str]:
    """`dpr pairs` with these options."""
    output = str(kit.folder / "labelled.jsonl")
    return ["pairs", "--policy", kit.workspace.sft, "--prompts", kit.workspace.prompts, "--output", output, *options]


def _gap(kit: Kit, rows: list[dict[str, Any]], **options: str) -> list[str]:
    """`dpr gap` with these pairs."""
    pairs = write_rows(kit.folder / "pairs.jsonl", rows)
    command = ["gap", "--policy", kit.workspace.sft, "--pairs", pairs, "--test", kit.workspace.prompts]
    command += ["--output", str(kit.folder / "gap"), "--seeds", "[1]"]
    settings = {"verifier": "exact_match"} | options
    return [*command, *(word for name, value in settings.items() for word in (f"--{name}", value))]


def _scored(kit: Kit, scorer: dict[str, Any] | None, **data: Any) -> list[str]:
    """`dpr fit` of DPR on what a scorer says."""
    return kit.dpr(scorer=scorer, **data)


def _other_tokenizer(kit: Kit) -> str:
    """A policy with fewer characters."""
    return str(create_toy_policy(kit.folder / "other", ["0123456789"], hidden_size=16, layers=1, heads=2))


def _head_without_weights(kit: Kit) -> str:
    """A policy whose config.json is that of a head."""
    folder = kit.policy()
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    path.write_text(json.dumps(config))
    return str(folder)


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
    },
    "Regression of rewards": {
        "REBEL with one step a rollout": Case(
            lambda kit: _rebel(kit, {"refresh_every": 1}), ("data.refresh_every", "REINFORCE", "level: sentence")
        ),
        "REBEL with one response a prompt": Case(
            lambda kit: _rebel(kit, {"samples_per_prompt": 1}), ("data.samples_per_prompt", "2 or more")
        ),
        "REBEL without a step": Case(lambda kit: _rebel(kit, eta=0.0), ("model.eta", "above 0")),
    },
    "Learned scorers": {
        "a scorer without a model": Case(lambda kit: _scored(kit, {}), ("neither", "`head`", "`policy`")),
        "a scorer beside a verifier": Case(
            lambda kit: _scored(kit, {"policy": kit.workspace.reference}, verifier=f"{VERIFIERS}.answer"),
            ("data.verifier", "data.scorer", "one of them"),
        ),
        "a policy in place of a head": Case(
            lambda kit: _scored(kit, {"head": kit.workspace.reference}), ("no verifier head", "reward_model.yaml")
        ),
        "a head in a folder that does not exist": Case(
            lambda kit: _scored(kit, {"head": str(kit.folder / "nowhere")}), ("There is no folder", "nowhere")
        ),
        "a run in place of its head": Case(
            lambda kit: _scored(
                kit, {"head": str(Path(write_head(kit.workspace.sft, kit.folder / "run" / "f")).parent)}
            ),
            ("but a folder of them", "Name one of these"),
        ),
        "a head whose weights are missing": Case(
            lambda kit: _scored(kit, {"head": _head_without_weights(kit)}), ("none of a head", "every score would be 0")
        ),
        "a head with another tokenizer": Case(
            lambda kit: _scored(kit, {"head": write_head(_other_tokenizer(kit), kit.folder / "head")}),
            ("another tokenizer than π_SFT",),
        ),
        "a scorer with another tokenizer": Case(
            lambda kit: _scored(kit, {"policy": _other_tokenizer(kit)}), ("another tokenizer than π_SFT",)
        ),
        "a head in place of a scoring policy": Case(
            lambda kit: _scored(kit, {"policy": write_head(kit.workspace.sft, kit.folder / "head")}),
            ("verifier head or reward model", "the folder of a policy"),
        ),
        "π_SFT as its scorer": Case(
            lambda kit: _scored(kit, {"policy": kit.workspace.sft}), ("π_SFT itself", "every score would be 0")
        ),
    },
    "Gaps by `dpr gap`": {
        "a gap of a few prompts": Case(lambda kit: _gap(kit, [PAIR] * 3), ("1 different prompt", "`--held_out`")),
        "a gap without what the verifier reads": Case(
            lambda kit: _gap(kit, [PAIR, PAIR | {"prompt": "2 + 2 ="}], verifier="answer"),
            ("pairs.jsonl:1", "'answer'"),
        ),
        "a gap by a recipe of rollouts": Case(
            lambda kit: _gap(kit, [PAIR], dpo="toy/rebel.yaml"), ("does not learn from a file of pairs", "`--dpo`")
        ),
        "the best of one sample": Case(lambda kit: _gap(kit, [PAIR], samples="1"), ("`samples` is 1", "2 or more")),
    },
    "Pairs by `dpr pairs`": {
        "an unknown judge": Case(lambda kit: _label(kit, "--judge", "oracle"), ("judge", "verifier:NAME")),
        "a judge without its models": Case(lambda kit: _label(kit, "--judge", "dense"), ("sft", "references")),
        "one sample for a pair": Case(
            lambda kit: _label(kit, "--judge", "verifier:answer", "--samples", "1"), ("samples", "two")
        ),
        "responses that are never right": Case(
            lambda kit: _label(kit, "--judge", "verifier:answer", "--max_new_tokens", "2", "--samples", "2"),
            ("equal scores", "another `judge`"),
        ),
    },
}
