"""What the chat template is given in training, every later command gives it again."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from dpr_lightning.cli import generate_command
from dpr_lightning.cli.main import main
from dpr_lightning.data import PromptSet
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_rows, write_sft_config

TEMPLATE = (
    "{% if tools %}{{ tools | length }} {% endif %}{% for message in messages %}{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt and mood is defined and mood == 'calm' %}{{ '+' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("variables"))


def chat(text: str, **values: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": text}]
    return {"messages": turns, **values}


def rendered_prompts(tokenizer: Any, file: str) -> list[str]:
    return [tokenizer.decode(tokens) for tokens in PromptSet.load(file, tokenizer).tokens]


def test_variables_of_the_template_travel_with_the_policy(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From SFT into the folder, from there into evaluation and into DPR; a row's own win."""
    answers = [chat(f"+{number}", answer=str(number), tools=TOOLS) for number in range(4)]
    train = write_rows(tmp_path / "train.jsonl", answers)
    config = yaml.safe_load(Path(write_sft_config(tmp_path, {"source": workspace.sft}, train)).read_text())
    config["data"]["init_args"] |= {"chat_template": TEMPLATE, "chat_template_kwargs": {"mood": "calm"}}
    export = {
        "class_path": "dpr_lightning.callbacks.ReferenceCheckpoints",
        "init_args": {"folder": str(tmp_path / "out")},
    }
    config["trainer"]["callbacks"] = [export]
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "sft.yaml")]) == 0
    policy = str(tmp_path / "out" / "final")
    rows = write_rows(tmp_path / "p.jsonl", [*answers, chat("2", answer="2", chat_template_kwargs={"mood": "glad"})])
    prompts = rendered_prompts(AutoTokenizer.from_pretrained(policy), rows)
    assert prompts == ["1 1 + 1 = +"] * 4 + ["1 + 1 = "]

    seen: list[PromptSet] = []
    collect = generate_command.collect_answers

    def recorded(models: Any, tokenizer: Any, questions: PromptSet, *rest: Any, **options: Any) -> Any:
        seen.append(questions)
        return collect(models, tokenizer, questions, *rest, **options)

    monkeypatch.setattr(generate_command, "collect_answers", recorded)
    command = ["evaluate", "--policy", policy, "--prompts", rows, "--verifier", "answer", "--max_new_tokens", "2"]
    assert main(command) == 0
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert [tokenizer.decode(tokens) for tokens in seen[0].tokens] == prompts
    assert all("add" in text for text in seen[0].texts[:4])

    options = {"prompts": rows, "sft": policy, "chat_template_kwargs": {"mood": "glad"}}
    path = Path(write_dpr_config(tmp_path, workspace, policy=policy, **options))
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"max_steps": 1, "callbacks": [export]}
    export["init_args"]["folder"] = str(tmp_path / "dpr")
    path.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(path)]) == 0
    after = rendered_prompts(AutoTokenizer.from_pretrained(tmp_path / "dpr" / "final"), rows)
    assert after == ["1 1 + 1 = "] * 4 + ["1 + 1 = "]
