"""Mistakes in GSM8K's training rows, to measure how well a list of suspicious rows names them.

    python -m benchmarks.planted_gsm8k gsm8k/train.jsonl planted.jsonl --rows 1800 --share 0.15

A quarter of them each: a result of a step is another number, with which later steps go on (``<<48/2=24>>`` says what is
computed); and the three kinds of `dpr audit --plant`. `benchmarks.pretrained_list` measures.
"""

import argparse
import json
import random
import re
from pathlib import Path

from dpr_lightning.evaluation.noise import other_character
from dpr_lightning.evaluation.planted_mistakes import plant_mistakes

STEP = re.compile(r"<<([0-9+\-*/(). ]+)=(\d+(?:\.\d+)?)>>")
NUMBER = re.compile(r"(?<![\d.])\d+(?:,\d{3})*(?:\.\d+)?")


def computed(expression: str) -> float | None:
    """The value of a step; None where it is no arithmetic."""
    try:
        return float(eval(expression, {"__builtins__": {}}))  # STEP allows digits, operators and brackets alone
    except (SyntaxError, TypeError, ArithmeticError):
        return None


def is_wrong(answer: str) -> bool:
    """Whether a step is wrong by arithmetic: what finds such mistakes without a policy."""
    values = [(computed(step[1]), float(step[2])) for step in STEP.finditer(answer)]
    return any(value is not None and abs(value - result) > 0.001 * max(1.0, abs(value)) for value, result in values)


def carried_on(answer: str, generator: random.Random) -> str | None:
    """The answer with another result of one step, with which all later steps and the last line go on."""
    steps = list(STEP.finditer(answer))
    if not steps or is_wrong(answer):
        return None
    wrong = generator.choice(steps)
    digits = [index for index, character in enumerate(wrong[2]) if character.isdecimal()]
    changed = {wrong[2]: other_character(wrong[2], generator.choice(digits), generator)}
    parts, end = [answer[: wrong.start(2)]], wrong.start(2)
    for step in steps[steps.index(wrong) + 1 :]:
        parts.append(_replaced(answer[end : step.start(2)], changed))
        expression, end = _replaced(step[1], changed), step.start(2)
        if expression != step[1] and (value := computed(expression)) is not None:
            changed[step[2]] = f"{value:.2f}".rstrip("0").rstrip(".")
    return "".join([*parts, _replaced(answer[end:], changed)])


def _replaced(text: str, changed: dict[str, str]) -> str:
    return NUMBER.sub(lambda match: changed.get(match[0].replace(",", ""), match[0]), text)


def plant(source: Path, output: Path, rows: int, share: float, seed: int) -> None:
    """Write the first rows with mistakes in a share of them, and which ones, to ``.mistakes.jsonl`` beside."""
    read = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:rows]]
    answers = [row["answer"] for row in read]
    planted = plant_mistakes(answers, share * 3 / 4, seed)
    kinds: dict[int, str] = {mistake.index: mistake.kind for mistake in planted}
    changes = {mistake.index: mistake.text for mistake in planted}
    generator = random.Random(seed)
    for index in generator.sample(range(rows), rows):
        if len(changes) < round(share * rows) and index not in changes:
            text = carried_on(answers[index], generator)
            if text is not None:
                changes[index], kinds[index] = text, "carried on"
    for index, text in changes.items():
        read[index]["answer"] = text
    output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read), encoding="utf-8")
    with output.with_suffix(".mistakes.jsonl").open("w", encoding="utf-8") as stream:
        for index in sorted(changes):
            entry = {"row": index + 1, "kind": kinds[index], "wrong_arithmetic": is_wrong(changes[index])}
            stream.write(json.dumps(entry) + "\n")


def main() -> None:
    """Plant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=1800)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    plant(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
