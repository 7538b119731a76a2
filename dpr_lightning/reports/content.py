"""The content of a report as plain data: numbers, lists and text, without layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """One curve: ``values`` over ``steps``; None and NaN leave a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis. ``levels``: horizontal lines by name, such as the score of SFT; ``over``: what the
    horizontal axis counts.
    """

    title: str
    series: Sequence[Series]
    unit: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    over: str = "step"


@dataclass(frozen=True)
class Point:
    """A mark at (x, y). ``correct`` colours it; None without a verifier."""

    name: str
    x: float
    y: float
    correct: bool | None = None


@dataclass(frozen=True)
class Scatter:
    """Points over two axes; ``diagonal`` adds the line x = y."""

    title: str
    x: str
    y: str
    points: Sequence[Point]
    note: str = ""
    diagonal: bool = False


@dataclass(frozen=True)
class ListTrust:
    """How far a list of suspicious rows can be trusted, by mistakes that were planted in a copy of the rows.

    ``words``: the same in a few sentences; ``tops``: lengths of the top of the list, each with the planted mistakes in
    it; ``mistakes``: all of them; ``average_precision`` in [0, 1]; ``panel``: precision over recall.
    """

    words: str
    tops: Sequence[tuple[int, int]]
    mistakes: int
    average_precision: float
    panel: Panel


@dataclass(frozen=True)
class Response:
    """A response with its token rewards; the lists have one entry a token.

    ``reward`` is r̂ in nats, ``policy_logprob`` log π_SFT, ``reference_logprob`` log π_ref (of several references the
    combined one of the reward); both are empty where they were not saved. ``correct`` is None without a verifier.
    ``label`` names the source.
    """

    tokens: Sequence[str]
    reward: Sequence[float]
    policy_logprob: Sequence[float] = ()
    reference_logprob: Sequence[float] = ()
    prompt: str = ""
    correct: bool | None = None
    label: str = ""


@dataclass(frozen=True)
class AuditedRow:
    """A demonstration to check: row ``row`` of ``file``, whose content has the hash ``hash``.

    ``token`` is the index of the most suspicious token in ``response``; ``loss_spans``: entries of that column for all
    suspicious tokens.
    """

    file: str
    row: int
    hash: str
    token: int
    response: Response
    loss_spans: tuple[dict[str, Any], ...] = ()

    @property
    def exported(self) -> dict[str, Any]:
        """Its line in a file of flagged rows, which `dpr clean` takes."""
        return {
            "file": self.file,
            "row": self.row,
            "hash": self.hash,
            "token": self.response.tokens[self.token],
            "reward": round(self.response.reward[self.token], 4),
            "loss_spans": list(self.loss_spans),
        }


@dataclass(frozen=True)
class Pair:
    """A right and a wrong response to one prompt, for display side by side."""

    prompt: str
    correct: Response
    wrong: Response


@dataclass(frozen=True)
class Answer:
    """An answer of a policy. ``correct``: None without a verifier; ``reward``: total, nats; ``length``: tokens."""

    policy: str
    text: str
    correct: bool | None
    reward: float
    length: int


@dataclass(frozen=True)
class Sample:
    """The answers of several policies to one prompt, in the same order everywhere on a page."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Report:
    """Everything on the page; empty parts are left out.

    Attributes:
        title: heading of the page.
        verdict: the results in sentences; a line each.
        arms: by name of the arm ``{"greedy", "sampled", "length", "reverse_kl"}``, as in metrics.json.
        paired: by ``"a - b"`` and measure ``{"difference", "low", "high", "p_holm", "verdict"}``, as in metrics.json.
        preview: the preview before any RL, from ``Preview.to_dict()``.
        preview_words: its verdict, a line each.
        panels: curves, grouped under the name of a stage: ``{"SFT": [...], "Dense-Path REINFORCE": [...]}``.
        pairs: right and wrong responses side by side.
        scatters: the reward against length and correctness.
        samples: answers of the policies to the same prompts, with a search field.
        rollouts: samples of reinforcement learning at several steps, in order; the label names the step.
        records: by name of the stage, what it came from: commit, config, seed, hashes of files, versions.
        commands: command lines that repeat the run.
        settings: options of the run; keys of nested mappings are joined by dots.
        machine: processor, threads, GPU and versions.
        notes: remarks under the results, such as seeds, prompts and the method of the intervals.
    """

    title: str
    verdict: str
    arms: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    paired: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    preview: Mapping[str, Any] | None = None
    preview_words: str = ""
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    pairs: Sequence[Pair] = ()
    scatters: Sequence[Scatter] = ()
    samples: Sequence[Sample] = ()
    rollouts: Sequence[Response] = ()
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    commands: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
