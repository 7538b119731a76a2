"""Results in JSON files with the key of everything that they depend on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpr_lightning.folders import whole_file


def key_of(*parts: str) -> str:
    """A hash of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cached(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a JSON file that was written with this key; None where there is none."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content if content["key"] == key else None


def write_cached(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its key, whole or not at all."""
    with whole_file(path) as stream:
        stream.write(json.dumps({"key": key, **content}) + "\n")
