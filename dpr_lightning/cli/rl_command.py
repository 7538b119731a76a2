"""``dpr rl``: Dense-Path REINFORCE of a run, with what `dpr check` found."""

import shlex
from collections.abc import Sequence
from typing import Any

from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.option_parser import OptionParser, columns, rows
from dpr_lightning.errors import InputError

RL_YAML = "rl.yaml"
NOTHING_FOUND = 3


def rl(arguments: Sequence[str]) -> Any:
    """Write ``rl.yaml`` into the folder of the run, and run it.

    Raises:
        InputError: an option is wrong, or the run was not checked.
    """
    parser = OptionParser("rl", "Improve the policy of a run on the reward that its SFT left behind.")
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--anyway", action="store_true", help="train although `dpr check` found nothing or did not run")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (default: 40)")
    parser.add_argument("--prompts", type=rows, metavar="FILE", help="prompts to learn on (default: those of SFT)")
    parser.add_argument("--columns", type=columns, metavar="prompt=NAME", help="names of columns, of --prompts")
    parser.add_argument("--beta", type=float, help="nats of reward per nat of KL (default: that of the check, or 0.25)")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-5; adapters: 3e-4")
    parser.add_argument("--max_new_tokens", type=int, help="of an answer (default: the longest demonstrated)")
    parser.add_argument("--prompts_per_step", type=int, default=16, help="prompts answered for a step (default: 16)")
    parser.add_argument("--verifier", help="scores the samples that are saved; no part of the reward")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_resume_option()
    parser.add_config_options()
    options = parser.parse_args(arguments)

    from dpr_lightning.check_result import CheckResult
    from dpr_lightning.run_manifest import RunManifest

    manifest = RunManifest.load(options.run)
    check = CheckResult.load(manifest.folder)
    if check is None and not options.anyway:
        raise InputError(
            f"{options.run} was not checked: run `dpr check --run {options.run}`, which says whether its reward is "
            "worth training on, or add --anyway."
        )
    if check is not None and check.outcome != "train" and not options.anyway:
        reasons = " ".join(check.reasons)
        print(f"dpr rl: not started. {reasons} To train on it nevertheless, add --anyway.")
        return NOTHING_FOUND

    settle_libraries()  # for seconds; a refusal does not need them
    from dpr_lightning.cli.run_config import run_config
    from dpr_lightning.workflow import RlOptions, rl_config

    selected = RlOptions(
        prompts=options.prompts,
        columns=options.columns,
        steps=options.steps,
        learning_rate=options.learning_rate,
        beta=options.beta,
        max_new_tokens=options.max_new_tokens,
        prompts_per_step=options.prompts_per_step,
        verifier=options.verifier,
        seed=options.seed,
    )
    config, lines = rl_config(manifest, check, selected)
    return run_config(config, lines, options, manifest.folder / RL_YAML, f"dpr rl {shlex.join(arguments)}")
