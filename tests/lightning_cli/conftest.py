"""Folders that commands are tried in."""

from tests.cli.conftest import case, dpr_config, workspace

__all__ = ["case", "dpr_config", "workspace"]
