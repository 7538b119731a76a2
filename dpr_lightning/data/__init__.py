"""Data: rows become demonstrations and prompts, as tokens with a mask of the tokens to learn."""

from dpr_lightning.data.batching import PlannedBatch, TokenBudgetBatchSampler
from dpr_lightning.data.chat_format import carried_format, choose_format
from dpr_lightning.data.conversations import Example, to_demonstration, to_prompt
from dpr_lightning.data.demonstrations import DemonstrationDataModule
from dpr_lightning.data.held_out import holds_out
from dpr_lightning.data.hybrid_datamodule import HybridDataModule
from dpr_lightning.data.loader import DemonstrationLoader
from dpr_lightning.data.messages import Message
from dpr_lightning.data.opponent_data import SelfPlayLoader, last_turn
from dpr_lightning.data.over_length import OverLength, TokenizationReport
from dpr_lightning.data.overlap import OverlapReport, check_overlap
from dpr_lightning.data.policy_data import PausingLoader, PolicyDataModule
from dpr_lightning.data.preference_datamodule import PreferenceDataModule
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.data.reward_datamodule import RewardDataModule
from dpr_lightning.data.rollout_loader import RolloutLoader
from dpr_lightning.data.rows import Row, RowFile, Rows, RowSource, open_rows
from dpr_lightning.data.self_play_datamodule import SelfPlayDataModule
from dpr_lightning.data.text_reward import TextReward
from dpr_lightning.data.tokenization import (
    TokenizedExample,
    tokenize_example,
    tokenize_examples,
    tokenize_prompt,
    tokenize_prompts,
)
from dpr_lightning.data.tokenized import TokenizedDataset, tokenize_rows

__all__ = [
    "DemonstrationDataModule",
    "DemonstrationLoader",
    "Example",
    "HybridDataModule",
    "Message",
    "OverLength",
    "OverlapReport",
    "PausingLoader",
    "PlannedBatch",
    "PolicyDataModule",
    "PreferenceDataModule",
    "PromptSet",
    "RewardDataModule",
    "RolloutLoader",
    "Row",
    "RowFile",
    "RowSource",
    "Rows",
    "SelfPlayDataModule",
    "SelfPlayLoader",
    "TextReward",
    "TokenBudgetBatchSampler",
    "TokenizationReport",
    "TokenizedDataset",
    "TokenizedExample",
    "carried_format",
    "check_overlap",
    "choose_format",
    "holds_out",
    "last_turn",
    "open_rows",
    "to_demonstration",
    "to_prompt",
    "tokenize_example",
    "tokenize_examples",
    "tokenize_prompt",
    "tokenize_prompts",
    "tokenize_rows",
]
