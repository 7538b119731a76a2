"""A language small enough to write out: every prefix is a state with its own logits, every response a path.

Token 0 is EOS. A response ends with EOS, or at the horizon.
"""

from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor


@dataclass
class TinyLanguage:
    """All responses of at most ``horizon`` tokens out of ``vocabulary``, as padded tensors [paths, horizon]."""

    vocabulary: int = 3
    horizon: int = 3
    prefixes: list[tuple[int, ...]] = field(init=False)
    tokens: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    terminated: Tensor = field(init=False)
    state: Tensor = field(init=False)

    def __post_init__(self) -> None:
        words = range(1, self.vocabulary)
        self.prefixes = [prefix for n in range(self.horizon + 1) for prefix in product(words, repeat=n)]
        paths = [(*prefix, 0) for prefix in self.prefixes if len(prefix) < self.horizon]
        paths += [prefix for prefix in self.prefixes if len(prefix) == self.horizon]
        shape = (len(paths), self.horizon)
        self.tokens = torch.zeros(shape, dtype=torch.int64)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self.state = torch.zeros(shape, dtype=torch.int64)
        self.terminated = torch.tensor([path[-1] == 0 for path in paths])
        for row, path in enumerate(paths):
            for t, token in enumerate(path):
                self.tokens[row, t], self.mask[row, t] = token, True
                self.state[row, t] = self.prefixes.index(path[:t])

    @property
    def states(self) -> int:
        """Prefixes in which a token is still chosen."""
        return sum(len(prefix) < self.horizon for prefix in self.prefixes)

    def random_logits(self, seed: int) -> Tensor:
        """[states, vocabulary], float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.states, self.vocabulary, dtype=torch.float64, generator=generator)

    def logits(self, table: Tensor) -> Tensor:
        """Logits along every path, [paths, horizon, vocabulary]; padding gets those of the empty prefix."""
        return table[self.state]

    def logprob(self, table: Tensor) -> Tensor:
        """log π of every path's tokens, [paths, horizon], by autograd's own log_softmax; 0 at padding."""
        whole = table.log_softmax(dim=-1)[self.state]
        return whole.gather(-1, self.tokens[..., None]).squeeze(-1).masked_fill(~self.mask, 0.0)

    def path_probability(self, table: Tensor) -> Tensor:
        """Probability of every path, [paths]; differentiable."""
        return self.logprob(table).sum(dim=1).exp()

    def objective(self, table: Tensor, reward: Tensor, discount: float = 1.0) -> Tensor:
        """J = E Σ_t γ^t r_t by enumeration; ``reward`` [paths, horizon] may depend on the table."""
        weights = discount ** torch.arange(self.horizon, dtype=torch.float64)
        return (self.path_probability(table) * (reward * weights).masked_fill(~self.mask, 0.0).sum(dim=1)).sum()

    def reward_to_go_gradient(self, table: Tensor, token_reward: Tensor, discount: float) -> Tensor:
        """E Σ_t ∇log π(a_t|s_t)·Q_γ(s_t, a_t), Q_γ by dynamic programming over states; [states, vocabulary].

        For γ < 1 it is what reward-to-go without the factor γ^t estimates; it is no objective's gradient.

        Args:
            table: logits of the policy.
            token_reward: r(s, a), [states, vocabulary].
            discount: γ.
        """
        probability = table.detach().softmax(dim=-1)
        quality, value = token_reward.detach().clone(), torch.zeros(len(self.prefixes), dtype=torch.float64)
        reach = torch.zeros(self.states, dtype=torch.float64)
        reach[0] = 1.0
        for index, prefix in enumerate(self.prefixes[: self.states]):
            for token in range(1, self.vocabulary):
                child = self.prefixes.index((*prefix, token))
                if child < self.states:
                    reach[child] = reach[index] * probability[index, token]
        for index in reversed(range(self.states)):
            for token in range(1, self.vocabulary):
                child = self.prefixes.index((*self.prefixes[index], token))
                quality[index, token] += discount * value[child]
            value[index] = (probability[index] * quality[index]).sum()
        # Σ_a ∇π(a|s)·Q(s,a) with respect to the logits of s
        return reach[:, None] * probability * (quality - value[: self.states, None])
