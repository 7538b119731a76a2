"""What every test runs under: one thread, no network, nothing written outside a temporary folder, one seed."""

import gc
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before torch, transformers or wandb are imported: they read these once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="dpr-lightning-tests-"))
# Processes that run tests side by side share the cache of the one that started them: kernels are compiled once.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# One thread: the models are tiny, tests run side by side, and OpenMP's threads wait busily when cores are short.
_THREADS = 1
_ENVIRONMENT = {
    "OMP_NUM_THREADS": str(_THREADS),
    "MKL_NUM_THREADS": str(_THREADS),
    # Lightning 2.6 uses what jsonargparse 5 will remove; the pin below 5 is the answer.
    "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": str(_SCRATCH / "huggingface"),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_DIR": str(_SCRATCH / "wandb"),
    "WANDB_DATA_DIR": str(_SCRATCH / "wandb-data"),
    "WANDB_CACHE_DIR": str(_SCRATCH / "wandb-cache"),
    "WANDB_CONFIG_DIR": str(_SCRATCH / "wandb-config"),
    "WANDB_ARTIFACT_DIR": str(_SCRATCH / "wandb-artifacts"),
    "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"] if _IS_WORKER else str(_SCRATCH / "cache"),
    "XDG_CONFIG_HOME": str(_SCRATCH / "config"),
    "XDG_DATA_HOME": str(_SCRATCH / "data"),
    "TORCH_EXTENSIONS_DIR": str(_SCRATCH / "torch-extensions"),
    # Whether there is CUDA is known without starting it, since no fork can use it after its parent has.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TRITON_CACHE_DIR": str(_SCRATCH / "triton"),
    "MPLCONFIGDIR": str(_SCRATCH / "matplotlib"),
}
os.environ.update(_ENVIRONMENT)
for _name, _value in _ENVIRONMENT.items():
    if _name.startswith(("WANDB_", "XDG_")) and _value.startswith(str(_SCRATCH)):
        Path(_value).mkdir(parents=True, exist_ok=True)

import pytest  # noqa: E402

# What takes seconds to import is imported where it is used: a process that starts others to run tests needs none of it.

# No test is about a loss of power, and waiting for the disk takes milliseconds a file.
os.fsync = lambda _: None  # type: ignore[assignment]


@pytest.fixture(params=[True, False], ids=["kernels", "PyTorch alone"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once with this package's kernels, and once as where there is no compiler."""
    from dpr_lightning.engine.kernels import compiling

    if request.param and compiling.load() is None:
        pytest.skip("there is no C++ compiler here")
    if not request.param:
        monkeypatch.setattr(compiling, "load", lambda: None)
    return bool(request.param)


def pytest_collection(session: pytest.Session) -> None:
    """Before a process that runs tests imports them: set the number of threads, and collect no garbage."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        gc.disable()  # until all is imported: a collection looks at all modules, and they are never garbage
        import torch

        torch.set_num_threads(_THREADS)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the process that forks others, where a collected test imports it."""
    gc.collect()
    gc.freeze()
    gc.enable()
    if "tests.fork_server" in sys.modules:
        sys.modules["tests.fork_server"].server()


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Report a library's warning as one of Python's: the process that starts others would import torch to name it."""
    if _IS_WORKER and warning_message.category.__module__ != "builtins":
        warning_message.category, text = UserWarning, f"{warning_message.category.__name__}: {warning_message.message}"
        warning_message.message = UserWarning(text)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End that process, and remove what the run wrote."""
    if "tests.fork_server" in sys.modules:
        sys.modules["tests.fork_server"].stop_server()
    shutil.rmtree(_SCRATCH, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say why a GPU test cannot run where somebody asks for it without a GPU."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state and gives back the default dtype it found."""
    import torch

    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    # A W&B run that stays open would be taken up by the next test's logger.
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


@pytest.fixture(scope="session")
def tiny_policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a character tokenizer, as an ordinary Hugging Face folder. Do not write into it."""
    from tests.tiny import write_tiny_policy

    return write_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="session")
def harness_tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with one task of lm-eval, ``doubled``: five sums with two choices each."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{a}+{a}=", "choices": [str(2 * a), "x"], "gold": 0} for a in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "doubled",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "doubled.yaml").write_text(yaml.safe_dump(task))
    return str(folder)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium to look at pages with; without one a test is skipped, but fails under CI."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if result := shutil.which(name):
            return result
    reason = "no chromium found; on Debian: apt-get install chromium"
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(reason)
    pytest.skip(reason)
