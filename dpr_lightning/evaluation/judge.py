"""Which of two answers is better, judged by another model, in both orders, with measures of the judge's bias."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dpr_lightning.data import Row
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.statistics import MeanInterval, Verdict, mean_interval, paired_comparison, verdict

Winner = Literal["A", "B", "tie"]
Message = dict[str, str]

INSTRUCTIONS = (
    "You compare two answers to one request. Judge how well each does what was asked: whether it is correct, complete "
    "and to the point. The order in which the answers stand means nothing, and a longer answer is not a better one. "
    'Reply with one JSON object and nothing else: {"reason": "one sentence", "winner": "A"} with winner "A", "B" or '
    '"tie".'
)


@dataclass(frozen=True)
class Match:
    """Two answers to one prompt."""

    prompt: str
    first: str
    second: str

    def messages(self, *, swapped: bool) -> list[Message]:
        """The messages for the judge; with ``swapped`` the second answer is A."""
        answers = (self.second, self.first) if swapped else (self.first, self.second)
        text = f"# Request\n{self.prompt}\n\n# Answer A\n{answers[0]}\n\n# Answer B\n{answers[1]}"
        return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]


@dataclass(frozen=True)
class JudgeReport:
    """Statistics of a judge's verdicts on two policies' answers.

    Attributes:
        win_rate: of the first policy: over prompts, the mean of both orders, a tie counting half.
        verdict: the first against the second, in words.
        p_value: of a sign-flip test of win rate ½.
        ties: share of prompts with a tie.
        flips: share of prompts whose winner changed with the order: the judge followed the position, not the answer.
        place_bias: share of decided verdicts that went to answer A; a half is fair.
        words: mean words of the first and of the second policy's answers.
        longer_wins: share of decided prompts that the longer answer won; None where none was decided.
        judged: prompts with a readable verdict in both orders.
        unreadable: prompts without.
    """

    win_rate: MeanInterval
    verdict: Verdict
    p_value: float
    ties: float
    flips: float
    place_bias: float | None
    words: tuple[float, float]
    longer_wins: float | None
    judged: int
    unreadable: int


def parse_verdict(reply: str) -> Winner | None:
    """The winner in a judge's reply: of its last JSON object that names one; None where it cannot be read."""
    decoder = json.JSONDecoder()
    for start in (index for index in range(len(reply) - 1, -1, -1) if reply[index] == "{"):
        try:
            parsed, _ = decoder.raw_decode(reply[start:])
        except json.JSONDecodeError:
            continue
        winner = parsed.get("winner") if isinstance(parsed, dict) else None
        names: tuple[Winner, ...] = get_args(Winner)
        for name in names:
            if isinstance(winner, str) and winner.strip().lower() == name.lower():
                return name
    return None


def match_answers(first: Mapping[str, str], second: Mapping[str, str]) -> list[Match]:
    """Pair the answers of two policies to the same prompts.

    Raises:
        InputError: one side answers prompts that the other does not.
    """
    missing = [prompt for prompt in (*first, *second) if prompt not in first or prompt not in second]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'prompt')} with an answer of one policy alone; the first is {missing[0][:60]!r}. "
            "Answer the same file of prompts by both."
        )
    return [Match(prompt, answer, second[prompt]) for prompt, answer in first.items()]


def summarise(matches: Sequence[Match], verdicts: Sequence[tuple[Winner | None, Winner | None]]) -> JudgeReport:
    """Count the judge's verdicts.

    Args:
        matches: that were judged.
        verdicts: of each match, first in its order and then swapped; None where a reply could not be read.

    Raises:
        InputError: fewer than two prompts have a readable verdict in both orders.
    """
    read = [
        (match, plain, swapped)
        for match, (plain, swapped) in zip(matches, verdicts, strict=True)
        if plain is not None and swapped is not None
    ]
    if len(read) < 2:
        raise InputError(
            f"{len(read)} of {len(matches)} prompts have a verdict that can be read in both orders; at least 2 are "
            "needed. Look at the replies in the cache: the model may not follow the instructions."
        )
    points = {"A": 1.0, "tie": 0.5, "B": 0.0}
    forward = np.array([points[plain] for _, plain, _ in read])
    backward = np.array([1.0 - points[swapped] for _, _, swapped in read])
    scores = (forward + backward) / 2
    shown_first = [winner == "A" for _, *both in read for winner in both if winner != "tie"]
    lengths = np.array([[len(match.first.split()), len(match.second.split())] for match, *_ in read])
    decided = (scores != 0.5) & (lengths[:, 0] != lengths[:, 1])
    longer = (lengths[:, 0] > lengths[:, 1]) == (scores > 0.5)
    compared = paired_comparison(scores, np.full(len(scores), 0.5))
    return JudgeReport(
        win_rate=mean_interval(scores),
        verdict=verdict(compared),
        p_value=compared.p_value,
        ties=float((scores == 0.5).mean()),
        flips=float((np.abs(forward - backward) == 1.0).mean()),
        place_bias=float(np.mean(shown_first)) if shown_first else None,
        words=(float(lengths[:, 0].mean()), float(lengths[:, 1].mean())),
        longer_wins=float(longer[decided].mean()) if decided.any() else None,
        judged=len(read),
        unreadable=len(matches) - len(read),
    )


def answers_of(rows: Iterable[Row]) -> dict[str, str]:
    """Prompts and answers of rows of ``dpr generate``, or of AlpacaEval (instruction, output).

    Raises:
        InputError: a row has neither, or a prompt is answered twice.
    """
    answers: dict[str, str] = {}
    for row in rows:
        values = row.values
        pair = next(
            ((values[prompt], values[answer])
             for prompt, answer in (("prompt", "completion"), ("instruction", "output"))
             if isinstance(values.get(prompt), str) and isinstance(values.get(answer), str)),
            None,
        )  # fmt: skip
        if pair is None:
            raise InputError(
                f"{row.location} has the keys {', '.join(map(repr, values))}; an answer is `prompt` and `completion`, "
                "as `dpr generate --output` writes, or `instruction` and `output`."
            )
        if pair[0] in answers:
            raise InputError(f"{row.location} answers {pair[0][:60]!r} again: one answer a prompt is judged.")
        answers[pair[0]] = pair[1]
    return answers
