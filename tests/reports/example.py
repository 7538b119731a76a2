"""A report with plausible numbers, and with text that would do harm if it were taken for markup."""

import math
import random
from typing import Any

import numpy as np

from dpr_lightning.evaluation import rationales
from dpr_lightning.evaluation.preview import Preview, describe, preview
from dpr_lightning.reports import Answer, Pair, Panel, Point, Report, Response, Sample, Scatter, Series

HARM = "<script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"


def example_report(pairs: int = 8) -> Report:
    """Numbers near those of a small run; every text that users or models supply holds ``HARM`` once."""
    result = example_preview()
    return Report(
        title="DPR on chain sums",
        verdict=(
            "DPR improves on SFT: sampled accuracy 0.618 against 0.473, a difference of +0.145 (95% interval +0.098 to "
            "+0.193), on 400 prompts seen by no stage of training.\n"
            "Against continued SFT at equal compute the difference of +0.030 cannot be told from chance. Decode-time "
            f"contrast, which needs no training, scores higher (0.793). {HARM}"
        ),
        arms={
            "sft": {"greedy": 0.930, "sampled": 0.473, "length": 57.8, "reverse_kl": 0.0},
            "reference": {"greedy": 0.288, "sampled": 0.020, "length": 63.1, "reverse_kl": 18.21},
            "continued_sft": {"greedy": 0.950, "sampled": 0.588, "length": 57.6, "reverse_kl": 0.412},
            "sft_low_temperature": {"greedy": 0.930, "sampled": 0.900, "length": 57.2, "reverse_kl": 1.92},
            "contrast": {"greedy": 0.905, "sampled": 0.793, "length": 57.5, "reverse_kl": None},
            "dpr": {"greedy": 0.945, "sampled": 0.618, "length": 57.3, "reverse_kl": 0.203},
        },
        paired={
            "dpr - sft": {
                "sampled": _entry(0.145, 0.098, 0.193, 0.0009, "better"),
                "greedy": _entry(0.015, -0.005, 0.035, 0.7, "no detectable difference"),
            },
            "dpr - continued_sft": {
                "sampled": _entry(0.030, -0.021, 0.080, 0.7, "no detectable difference"),
                "greedy": _entry(-0.005, -0.025, 0.015, 0.7, "no detectable difference"),
            },
            "dpr - sft_low_temperature": {
                "sampled": _entry(-0.282, -0.331, -0.234, 0.0009, "worse"),
                "greedy": _entry(0.015, -0.005, 0.035, 0.7, "no detectable difference"),
            },
            "dpr - contrast": {
                "sampled": _entry(-0.175, -0.224, -0.127, 0.0009, "worse"),
                "greedy": _entry(0.040, 0.013, 0.068, 0.051, "no detectable difference"),
            },
        },
        preview=result.to_dict(),
        preview_words=describe(result, "log_ratio", 1.0),
        panels={
            "SFT": [
                Panel(
                    "Loss", [_curve("training", 320, 2.9, 0.12, 0.15), _curve("validation", 16, 2.6, 0.16, 0.0)], "nats"
                ),
                Panel("Verifier score", [_curve("greedy", 8, 0.02, 0.93, 0.02)]),
            ],
            "Dense-Path REINFORCE": [
                Panel(
                    "Reward",
                    [_curve("samples", 250, -0.61, -0.09, 0.1), _curve("demonstrations", 25, -0.1, -0.11, 0.01)],
                ),
                Panel("Length", [_curve("length", 250, 57.9, 57.1, 0.8)], "tokens"),
                Panel("KL to SFT", [_curve("reverse KL", 250, 0.0, 0.21, 0.02)], "nats per response"),
                Panel("Entropy", [_curve("entropy", 250, 0.052, 0.03, 0.003)], "nats per token"),
                Panel("Gradient norm", [_curve("gradient norm", 250, 1.4, 0.6, 0.3)]),
                Panel("Verifier score", [_curve("sampled", 25, 0.47, 0.62, 0.03)], levels={"SFT": 0.473}),
            ],
        },
        pairs=[example_pair(seed) for seed in range(pairs)],
        scatters=[example_scatter()],
        samples=[example_sample(seed) for seed in range(10)],
        rollouts=[
            Response(
                ["1", "+", HARM], [0.0, -2.0, 0.5], prompt=f"prompt {index}", correct=index > 0, label=f"step {index}"
            )
            for index in range(3)
        ],
        records={"sft: SupervisedIRL": {"command": f"dpr sft {HARM}", "commit": "ab12", "versions": {"torch": "2.13"}}},
        commands=["make quickstart", "dpr quickstart --seed 0 --folder runs/quickstart"],
        settings={
            "policy": {"hidden_size": 128, "layers": 4},
            "reward": {"form": "one_sided", "references": ["step-160"]},
            "kl_coefficient": 0.25,
            "learning_rate": 5e-5,
            "note": HARM,
        },
        machine={"processor": "2 cores", "memory": "8 GiB", "python": "3.11.2", "torch": "2.13.0+cpu"},
        notes=("400 held-out prompts, disjoint from demonstrations and RL prompts by text.", "One seed (0)."),
    )


def example_pair(seed: int) -> Pair:
    """A right response and one with a slip, character by character; that of seed 0 carries ``HARM``."""
    generator = random.Random(seed)
    first, second, third = (generator.randint(10, 99) for _ in range(3))
    metadata = {"expression": f"{first} + {second} - {third}"}
    right = f"{rationales.chain_sum_rationale(metadata, 'digits')}\nAnswer: {first + second - third}"
    slip = generator.randrange(right.index(">") - 3, right.index(">"))
    wrong = f"{right[:slip]}{(int(right[slip]) + 3) % 10 if right[slip].isdigit() else 7}{right[slip + 1 :]}"
    return Pair(
        prompt=f"{metadata['expression']} =",
        correct=_response([*right, "<eos>"], generator, None, True),
        wrong=_response([*wrong, *([HARM] if seed == 0 else []), "<eos>"], generator, slip, False),
    )


def example_sample(seed: int) -> Sample:
    """Answers of six policies to one prompt: odd ones are wrong, and all of them at every fifth prompt right."""
    return Sample(
        prompt=f"{seed} + {seed} =",
        answers=[
            Answer(
                policy=name,
                text=f"Answer: {2 * seed}" if index % 2 == 0 or seed % 5 == 0 else HARM,
                correct=index % 2 == 0 or seed % 5 == 0,
                reward=-0.3 * index,
                length=9 + index,
            )
            for index, name in enumerate(("sft", "dpr", "contrast", "spin", "dft", "oracle"))
        ],
    )


def example_scatter() -> Scatter:
    """Fifty answers, longer ones with less reward."""
    generator = random.Random(5)
    points = [
        Point(HARM if index == 0 else f"prompt {index}", 30 + index, generator.gauss(-index, 3), index % 3 > 0)
        for index in range(50)
    ]
    return Scatter("Reward and length", "length, tokens", "total reward, nats", points, diagonal=True)


def _response(tokens: list[str], generator: random.Random, slip: int | None, correct: bool) -> Response:
    policy = [-generator.expovariate(14.0) for _ in tokens]
    reference = [min(-0.001, value - generator.expovariate(4.0) + 0.08) for value in policy]
    if slip is not None:
        policy[slip], reference[slip] = -4.3, -2.1
        policy[slip + 4], reference[slip + 4] = -1.9, -1.2
    reward = [mine - theirs for mine, theirs in zip(policy, reference, strict=True)]
    return Response(
        tokens, reward, policy, reference, correct=correct, label="SFT, sample 3" if correct else "SFT, sample 11"
    )


def example_preview() -> Preview:
    """Published form that heads down, one-sided form that heads up, and the sharpening control."""
    generator = np.random.default_rng(0)
    right = (generator.random((200, 64)) < generator.beta(2, 2.4, (200, 1))).astype(float)
    length = generator.integers(50, 66, (200, 64))
    slips = (1 - right) * generator.gamma(1.2, 1.0, (200, 64))
    noise = generator.normal(size=(200, 64))
    returns = {
        "log_ratio": 2.2 * noise + 0.1 * length - 0.4 * right + (1 - right) * generator.gamma(1.0, 1.5, (200, 64)),
        "clipped ±0.1": 0.3 * noise - 0.4 * slips,
        "interpolated λ=0.5": 1.2 * noise - 1.6 * slips,
        "centred": 1.4 * noise - 0.9 * slips,
        "one_sided": -1.5 * slips - 0.1 * np.abs(noise),
        "one_sided_centred": -1.6 * slips - 0.1 * np.abs(noise),
    }
    sft_logprob = -2.0 * slips - generator.gamma(2.0, 0.5, (200, 64))
    return preview(returns, length, score=right, sft_logprob=sft_logprob, resamples=200)


def _entry(difference: float, low: float, high: float, p_holm: float, verdict: str) -> dict[str, Any]:
    return {"difference": difference, "low": low, "high": high, "p_holm": p_holm, "verdict": verdict}


def _curve(name: str, steps: int, start: float, end: float, noise: float) -> Series:
    generator = random.Random(name)
    stride = 320 // steps if steps < 40 else 1
    values = [
        end
        + (start - end) * math.exp(-4.0 * step / steps)
        + generator.gauss(0, noise) * (0.3 + 0.7 * math.exp(-3 * step / steps))
        for step in range(steps)
    ]
    return Series(name, [step * stride for step in range(steps)], values)
