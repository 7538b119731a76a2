"""From a model and a file of demonstrations to the configs of `dpr fit`: what `dpr sft`, `check` and `rl` run."""

from dpr_lightning.workflow.base_model import BaseModel
from dpr_lightning.workflow.check_extent import CheckSize, check_size
from dpr_lightning.workflow.check_verdict import combine
from dpr_lightning.workflow.config_settings import Config, apply_setting, merge, read_settings, write_config
from dpr_lightning.workflow.rl_config import RlOptions, rl_config
from dpr_lightning.workflow.sft_config import SftOptions, sft_config

__all__ = [
    "BaseModel",
    "CheckSize",
    "Config",
    "RlOptions",
    "SftOptions",
    "apply_setting",
    "check_size",
    "combine",
    "merge",
    "read_settings",
    "rl_config",
    "sft_config",
    "write_config",
]
