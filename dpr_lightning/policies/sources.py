"""Finds a policy's files, and a name for them that is valid in any folder and on any machine."""

import os
import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from transformers.utils.hub import cached_file

ADAPTER_CONFIG = "adapter_config.json"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/([0-9a-f]{40})")
_ADAPTER_FILES = ("adapter_*", "*.json", "*.jinja", "*.model", "*.txt")


def adapter_folder(source: str, revision: str | None = None) -> str | None:
    """The folder of the adapter at a local path or a hub id; None: it is no adapter.

    An adapter on the hub is downloaded.
    """
    if Path(source).exists():
        return source if (Path(source) / ADAPTER_CONFIG).is_file() else None
    return _downloaded_adapter(source, revision) if _REPOSITORY.fullmatch(source) else None


@lru_cache
def _downloaded_adapter(repository: str, revision: str | None) -> str | None:
    try:
        config = cached_file(
            repository,
            ADAPTER_CONFIG,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such repository: loading it will raise the error
        return None
    if config is None or constants.HF_HUB_OFFLINE:
        return str(Path(config).parent) if config is not None else None
    return snapshot_download(repository, revision=revision, allow_patterns=list(_ADAPTER_FILES))


def local_folder(source: str, revision: str | None = None) -> Path | None:
    """The folder of a local path, or of the downloaded files of a hub id."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists() or not _REPOSITORY.fullmatch(source):
        return None
    for name in ("config.json", "tokenizer_config.json"):
        try:
            file = cached_file(source, name, revision=revision, local_files_only=True)
        except OSError:
            continue
        if file is not None:
            return Path(file).parent
    return None


def lasting_source(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """A name of ``source`` that is valid in any working directory, and its revision.

    For a folder of the hub's cache this is its hub id, which is valid on other machines too; for any other folder its
    absolute path; a hub id is returned unchanged.
    """
    path = Path(source)
    if not path.exists():
        return source, revision
    resolved, cache = path.absolute(), Path(constants.HF_HUB_CACHE)
    if resolved.is_relative_to(cache.absolute()):
        match = _SNAPSHOT.fullmatch(resolved.relative_to(cache.absolute()).as_posix())
        if match is not None:
            owner, name, commit = match.groups()
            return (owner if name is None else f"{owner}/{name}"), commit
    return str(path.resolve()), None


def is_missing_path(source: str) -> bool:
    """Whether ``source`` can only be a local path, and does not exist."""
    return not Path(source).exists() and not _REPOSITORY.fullmatch(source)


def relative_source(source: str, folder: Path) -> str | None:
    """The path from ``folder`` to a local ``source``, which stays valid if both are moved together."""
    return os.path.relpath(Path(source).resolve(), folder.resolve()) if Path(source).exists() else None
