"""A conversation with a policy, whose answers are scored token by token."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import carried_format
from dpr_lightning.data.conversations import to_prompt
from dpr_lightning.data.rows import Row
from dpr_lightning.data.tokenization import tokenize_prompts
from dpr_lightning.policies import special_tokens
from dpr_lightning.rewards import DenseReward
from dpr_lightning.rollouts import SamplingOptions, decode_answers, decode_tokens, sample


class ScoredAnswer(NamedTuple):
    """``text`` of an answer; ``tokens`` with their rewards in nats, the end of the answer included; ``ended`` by it."""

    text: str
    tokens: list[tuple[str, float]]
    ended: bool


class Conversation:
    """Turns so far, and the policy that takes the next one.

    Args:
        policy: a model for inference.
        tokenizer: of the policy, with the chat template that it was trained with, if any.
        reward: scores each token of an answer; None: rewards are 0.
        options: how answers are sampled.
        system: text of a system turn; None: none.
        seed: of the samples.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        reward: DenseReward | None,
        options: SamplingOptions,
        system: str | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.tokenizer, self.reward, self.options = policy, tokenizer, reward, options
        self.seed = seed
        self._form = carried_format(tokenizer, policy)
        self._special = special_tokens(tokenizer, policy)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of the prompt: with a chat template."""
        return self._form.chat_template is not None

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []

    def answer(self, text: str) -> ScoredAnswer:
        """Take the user's turn, and return the policy's.

        Raises:
            InputError: the prompt is empty, or longer than the policy has positions.
        """
        number = len(self.turns) // 2 + 1
        turns = [*self._system, *self.turns, {"role": "user", "content": text}]
        values = {"messages": turns} if self.remembers else {"prompt": text}
        prompt = tokenize_prompts([to_prompt(Row("conversation", number, values))], self.tokenizer, self._form)[0]
        rollouts = sample(
            self.policy,
            [prompt],
            self.options,
            stop_tokens=self._special.stops,
            pad_token=self._special.pad,
            seed=self.seed + number,
            tokenizer=self.tokenizer,
        )
        answer = decode_answers(rollouts.tokens, rollouts.mask, self.tokenizer, self._special)[0]
        ids = rollouts.tokens[0][rollouts.mask[0]].tolist()
        rewards = [0.0] * len(ids)
        if self.reward is not None:
            scores = self.reward.score(rollouts.tokens, rollouts.mask)
            rewards = scores.reward[0][scores.mask[0]].tolist()
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        tokens = [(decode_tokens(self.tokenizer, [token]), value) for token, value in zip(ids, rewards, strict=True)]
        return ScoredAnswer(answer, tokens, bool(rollouts.terminated[0]))
