"""Keeps the base's settings files in a saved policy, except for settings that were changed on purpose.

transformers writes settings in the format of its current version, which older programs cannot read, and adds temporary
ones. Therefore the base is also saved unchanged by transformers; the differences between that and the policy's files
are the changes, and these are put into a copy of the base's files.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from dpr_lightning.policies.adapters import is_adapter, resolve_adapter
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.sources import local_folder

log = logging.getLogger(__name__)
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
_OF_THE_MOMENT = ("backend", "is_local", "local_files_only", "name_or_path", "transformers_version")
_NEVER_MEANT = ("padding_side", "tokenizer_class")
"""Not changed on purpose: padding works with either side, and the class's name is the installed transformers'."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates")
_COPIED = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json"),
)
"""Files of tokenizers and processors that transformers reads but does not always write."""


def keep_base_files(target: Path, spec: PolicySpec) -> None:
    """Replace the settings in ``target`` by the base's, with the policy's changes; called when a policy is saved.

    Args:
        target: a folder with a newly saved policy.
        spec: from which the policy was built.
    """
    base, adapter = resolve_adapter(spec)
    trust = spec.trust_remote_code
    settings = local_folder(base.source, base.revision) if base.source is not None and not base.gguf_file else None
    if settings is not None:
        _keep(target / CONFIG, settings / CONFIG, lambda: _config(settings, trust))
    generation = Path(adapter) if adapter is not None and (Path(adapter) / GENERATION).is_file() else settings
    if generation is not None:
        _keep(target / GENERATION, generation / GENERATION, lambda: _generation(generation))
    words = None
    if spec.gguf_file is None or spec.tokenizer is not None:
        words = local_folder(spec.tokenizer_source, spec.revision if spec.tokenizer is None else None)
    _keep_tokenizer(target, words, trust)


def _config(folder: Path, trust: bool) -> dict[str, Any]:
    return _parsed(AutoConfig.from_pretrained(folder, trust_remote_code=trust).to_json_string())


def _generation(folder: Path) -> dict[str, Any]:
    return _parsed(GenerationConfig.from_pretrained(folder).to_json_string())


def _parsed(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(text)
    return fields


def _keep(target: Path, original: Path, unchanged: Callable[[], dict[str, Any]]) -> None:
    if not (target.is_file() and original.is_file()):
        return
    ours, theirs = _read(target), _read(original)
    if ours.get("model_type") != theirs.get("model_type"):
        return  # the policy is a part of its base
    _write(target, _with_differences(theirs, unchanged(), ours))


def _with_differences(original: dict[str, Any], unchanged: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """``original`` with the differences between ``unchanged`` and ``ours``."""
    result = dict(original)
    for key in dict.fromkeys((*ours, *unchanged)):
        before, after = unchanged.get(key), ours.get(key)
        if key in _OF_THE_MOMENT or (before == after and (key in ours) == (key in unchanged)):
            continue
        name = "torch_dtype" if key == "dtype" and "torch_dtype" in original else key  # its older name
        if key not in ours:
            result.pop(name, None)
        elif isinstance(before, dict) and isinstance(after, dict) and isinstance(original.get(name), dict):
            result[name] = _with_differences(original[name], before, after)
        else:
            result[name] = after
    return result


def _keep_tokenizer(target: Path, original: Path | None, trust: bool) -> None:
    """Like :func:`_keep`, for the files of a tokenizer; ``original``: the folder from which it was loaded, if any."""
    ours = _read(target / TOKENIZER)
    if original is None or not (original / TOKENIZER).is_file():
        _write(target / TOKENIZER, _readable(ours))
        return
    theirs = _read(original / TOKENIZER)
    with tempfile.TemporaryDirectory() as name:
        unchanged = Path(name)
        try:
            AutoTokenizer.from_pretrained(original, trust_remote_code=trust).save_pretrained(unchanged)
        except (OSError, ValueError) as error:
            log.warning("The tokenizer in %s cannot be read again (%s); its files are written anew.", original, error)
            _write(target / TOKENIZER, _readable(ours))
            return
        before = _read(unchanged / TOKENIZER)
        for key in _NEVER_MEANT:
            before.pop(key, None)
            ours_class = ours.pop(key, None)
            if key == "tokenizer_class" and key not in theirs and is_adapter(target):
                theirs[key] = _readable({key: ours_class})[
                    key
                ]  # an adapter has no config.json from which it could follow
        result = _with_differences(theirs, before, ours)
        same_template = _texts(target, _TEMPLATES) == _texts(unchanged, _TEMPLATES)
        same_words = _texts(target, ("tokenizer.json",)) == _texts(unchanged, ("tokenizer.json",))
    template = _texts(target, _TEMPLATES).get("chat_template.jinja")
    if same_template:
        for name in _TEMPLATES:
            _copy(original / name, target / name)
    elif "chat_template" in theirs:
        result["chat_template"] = template
        if not (original / "chat_template.jinja").is_file():
            (target / "chat_template.jinja").unlink(missing_ok=True)
    if template is None:
        result.pop("chat_template", None)
    _write(target / TOKENIZER, result)
    if not same_words:
        return
    _copy(original / "tokenizer.json", target / "tokenizer.json", only_if_there=True)
    for pattern in _COPIED:
        for path in original.glob(pattern):
            if not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    special = target / "special_tokens_map.json"
    if special.is_file():
        changed = {key: result[key] for key in _SPECIAL_TOKENS if result.get(key) != theirs.get(key)}
        if changed:
            _write(special, _read(special) | changed)


def _readable(tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in a format that transformers 4 reads too, without temporary settings."""
    result = {key: value for key, value in tokenizer_config.items() if key not in _OF_THE_MOMENT}
    if result.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(result.get("extra_special_tokens"), list):
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    return result


def _texts(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Contents of files, and of files in folders, of these names."""
    paths = [path for name in names for path in (folder / name, *sorted((folder / name).glob("*"))) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def _copy(source: Path, target: Path, *, only_if_there: bool = False) -> None:
    """Copy a file or folder to ``target``; where there is none, delete ``target`` unless ``only_if_there``."""
    if only_if_there and not source.exists():
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def _read(path: Path) -> dict[str, Any]:
    return _parsed(path.read_text(encoding="utf-8"))


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
