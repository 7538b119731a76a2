"""``dpr chat``: talk to the policy of a run; token rewards of its answers in colour."""

import sys
from collections.abc import Iterator, Sequence

from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

FULL_COLOUR = 2.0
"""Nats at which a colour is full."""


def chat(arguments: Sequence[str]) -> None:
    """Answer each line of the terminal, or of standard input, until it ends.

    Raises:
        InputError: an option is wrong, or there is no policy.
    """
    parser = OptionParser(
        "chat",
        "Talk to a policy. The reward of each token of its answers is its colour: green where π_SFT finds it more "
        "probable than the reference did, red where less. /reset forgets the conversation; Ctrl-D ends.",
    )
    parser.add_argument("--run", metavar="FOLDER", help="folder of the run: its newest policy, and its reward")
    parser.add_argument("--policy", metavar="FOLDER", help="a policy instead: a folder or hub id")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this alone, and end")
    parser.add_argument("--system", metavar="TEXT", help="a system turn")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    parser.add_argument("--max_new_tokens", type=int, help="of an answer (default: twice the longest demonstrated)")
    parser.add_argument("--no_rewards", action="store_true", help="plain answers, without colours")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.policy is None):
        raise InputError("`dpr chat` takes --run FOLDER or --policy FOLDER.")

    from dpr_lightning.run_manifest import RunManifest

    manifest = None if options.run is None else RunManifest.load(options.run)
    settle_libraries()
    from rich.text import Text

    from dpr_lightning.data import TextReward
    from dpr_lightning.policies.inference_policy import best_device, frozen_policy
    from dpr_lightning.reports.console import console
    from dpr_lightning.rollouts import SamplingOptions
    from dpr_lightning.workflow.conversation import Conversation

    reward, limit = None, options.max_new_tokens or 256
    policy = options.policy
    if manifest is not None:
        policy = manifest.policy
        limit = options.max_new_tokens or 2 * (manifest.longest_demonstration or 128)
        if not options.no_rewards:
            reward = TextReward.from_run(options.run)
            reward.frozen.to(best_device())
    model, tokenizer = frozen_policy(policy)
    sampling = SamplingOptions(limit, options.temperature)
    conversation = Conversation(model, tokenizer, reward, sampling, options.system, options.seed)
    interactive = options.prompt is None and sys.stdin.isatty()
    if interactive:
        forgets = "" if conversation.remembers else " It has no chat template: each line is a prompt of its own."
        console.print(f"{policy}. Ctrl-D ends.{forgets}", highlight=False, markup=False)
    for line in [options.prompt] if options.prompt is not None else _lines(interactive):
        if line.strip() == "/reset":
            conversation.reset()
            continue
        answer = conversation.answer(line)
        if reward is None:
            console.print(answer.text, highlight=False, markup=False, soft_wrap=True)
        else:
            text = Text()
            for token, value in answer.tokens[: -1 if answer.ended else None]:
                text.append(token, style=_style(value))
            total = sum(value for _, value in answer.tokens)
            console.print(text, soft_wrap=True)
            count = len(answer.tokens)
            console.print(f"[reward {total:+.2f} nats over {count} tokens]", style="dim", markup=False, highlight=False)
        if not answer.ended:
            console.print(f"[cut at {limit} tokens]", style="dim", markup=False, highlight=False)


def _lines(interactive: bool) -> Iterator[str]:
    """Lines that are not empty, until the end of the input."""
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _style(reward: float) -> str:
    """A background from white to green, or to red, with the size of the reward."""
    strength = min(abs(reward) / FULL_COLOUR, 1.0)
    if strength < 0.05:
        return ""
    fade = round(255 * (1 - 0.75 * strength))
    return f"black on rgb({fade},255,{fade})" if reward > 0 else f"black on rgb(255,{fade},{fade})"
