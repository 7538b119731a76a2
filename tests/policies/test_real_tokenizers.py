"""Fifteen tokenizers after well-known models: stops, padding, templates, round trips, `dpr fit`, ends of answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dpr_lightning.cli.main import main
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.conversations import to_demonstration
from dpr_lightning.data.rows import Row
from dpr_lightning.data.tokenization import tokenize_examples, tokenize_prompts
from dpr_lightning.policies import load_tokenizer, special_tokens
from dpr_lightning.rollouts import SamplingOptions, decode_answers, sample
from tests.policies.tokenizer_zoo import ZOO, Setup, write_setup
from tests.workspace import write_rows, write_sft_config

ROWS = [{"prompt": f"what is {a} + 2?", "completion": f"the sum is {a + 2}, né 日本 😀.\nyes"} for a in range(4)]
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=ZOO)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, str]:
    setup: Setup = ZOO[request.param]
    return setup, write_setup(tmp_path_factory.mktemp("zoo"), setup)


def load(setup: Setup, folder: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, pad_token=setup.options.get("pad_token"), for_training=True)


def test_stops_padding_and_text(built: tuple[Setup, str]) -> None:
    setup, folder = built
    tokenizer = load(setup, folder)
    special = special_tokens(tokenizer, folder, end_of_turn=setup.options.get("end_of_turn"), required=True)
    names: Any = tokenizer.convert_ids_to_tokens
    assert set(names(list(special.stops))) == set(setup.stops)
    assert names(special.eos) == setup.stops[0]
    assert names(special.pad) == setup.pad
    form = choose_format(tokenizer, end_of_turn=setup.options.get("end_of_turn"), policy=folder)
    examples = [to_demonstration(Row("f", index, row)) for index, row in enumerate(ROWS)]
    rows = tokenize_examples(examples, tokenizer, form)
    prompts = tokenize_prompts(examples, tokenizer, form)
    for row, prompt, values in zip(rows, prompts, ROWS, strict=True):
        assert row.tokens[: len(prompt)] == prompt
        assert all(row.mask[len(prompt) :])
        assert row.tokens[-1] in special.stops
        assert not set(row.tokens[len(prompt) : -1]) & set(special.stops)
        if special.bos is not None and special.bos not in special.stops and (setup.adds_bos or setup.template is None):
            assert row.tokens.count(special.bos) == 1
        tokens, mask = torch.tensor([row.tokens]), torch.tensor([row.mask])
        text = decode_answers(tokens, mask, tokenizer, special)[0]
        assert text.removeprefix("<|channel|>final<|message|>").strip() == values["completion"]


def test_spans_are_located(built: tuple[Setup, str]) -> None:
    setup, folder = built
    tokenizer = load(setup, folder)
    form = choose_format(tokenizer, end_of_turn=setup.options.get("end_of_turn"), policy=folder)
    content = ROWS[0]["completion"]
    whole = tokenize_examples([to_demonstration(Row("f", 1, ROWS[0]))], tokenizer, form)[0]
    for part in ("sum", "2", "日", "yes"):
        start = content.index(part)
        row = {**ROWS[0], "loss_spans": [{"start": start, "end": start + len(part), "text": part}]}
        example = tokenize_examples([to_demonstration(Row("f", 1, row))], tokenizer, form)[0]
        assert example.tokens == whole.tokens
        dropped = [index for index in range(len(whole.mask)) if whole.mask[index] and not example.mask[index]]
        assert part in tokenizer.decode([whole.tokens[index] for index in dropped])
        for index in (dropped[0], dropped[-1]):  # without the first or the last of them, the part is not whole
            rest = [whole.tokens[other] for other in dropped if other != index]
            assert part not in tokenizer.decode(rest)


def test_fit_and_where_answers_end(
    built: tuple[Setup, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, folder = built
    train = write_rows(tmp_path / "rows.jsonl", ROWS)
    data = {name: value for name, value in setup.options.items() if name == "end_of_turn"}
    policy = {"source": folder} | {name: value for name, value in setup.options.items() if name == "pad_token"}
    saved = str(tmp_path / "saved")
    export = {
        "class_path": "dpr_lightning.callbacks.ReferenceCheckpoints",
        "init_args": {"folder": saved, "fractions": [0.5]},
    }
    trainer = {"callbacks": [export], "max_steps": 2}
    if setup.advice:
        assert main(["fit", "--config", write_sft_config(tmp_path, {"source": folder}, train)]) == 2
        message = capsys.readouterr().err
        for words in setup.advice:
            assert words in message
    main(["fit", "--config", write_sft_config(tmp_path, policy, train, trainer=trainer, **data)])
    trained = f"{saved}/final"
    tokenizer = load_tokenizer(trained, for_training=True)
    model: Any = AutoModelForCausalLM.from_pretrained(trained)
    special = special_tokens(tokenizer, model, required=True)
    assert set(tokenizer.convert_ids_to_tokens(list(special.stops))) == set(setup.stops)
    assert tokenizer.pad_token == setup.pad
    form = choose_format(tokenizer, policy=trained)
    prompts = tokenize_prompts([to_demonstration(Row("f", 0, ROWS[0]))], tokenizer, form)
    weights = model.lm_head.weight.detach().clone()
    for stop in special.stops:
        make_likely(model, weights, prompts[0], special.stops, stop)
        ours = sample(
            model,
            prompts,
            SamplingOptions(NEW_TOKENS, temperature=0.0),
            stop_tokens=special.stops,
            pad_token=special.pad,
        )
        theirs = model.generate(
            torch.tensor(prompts), attention_mask=torch.ones(1, len(prompts[0])), max_new_tokens=NEW_TOKENS
        )
        assert ours.tokens[ours.mask].tolist() == theirs[0, len(prompts[0]) :].tolist()
        assert ours.tokens[0, -1] == stop
        assert ours.terminated.all()


def make_likely(model: Any, weights: torch.Tensor, prompt: list[int], stops: Sequence[int], stop: int) -> None:
    """Set the output weights so that the policy says a few tokens, and then ``stop``."""
    with torch.no_grad():
        head = model.lm_head.weight
        head.copy_(weights)
        head[list(stops)] = 0.0
        tokens = list(prompt)
        for _ in range(4):
            output = model(torch.tensor([tokens]), output_hidden_states=True)
            tokens.append(int(output.logits[0, -1].argmax()))
        state = output.hidden_states[-1][0, -1]
        head[stop] = 1.5 * output.logits[0, -1].max() * state / state.dot(state)
