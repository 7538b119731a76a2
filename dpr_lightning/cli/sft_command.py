"""``dpr sft`` and ``dpr init``: from a model and demonstrations to a run, or to the config of one."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.option_parser import OptionParser, columns, rows
from dpr_lightning.run_manifest import SFT_YAML


def sft(arguments: Sequence[str]) -> Any:
    """Write ``sft.yaml`` into the folder of the run, and run it.

    Raises:
        InputError: an option is wrong.
    """
    parser = OptionParser("sft", "Fine-tune a model on demonstrations. The same command again resumes.")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the run (default: runs/NAME of the file)")
    _add_options(parser)
    parser.add_resume_option()
    parser.add_config_options()
    options = parser.parse_args(arguments)
    settle_libraries()
    output = options.output or str(Path("runs") / Path(str(options.train)).name.partition(".")[0])
    from dpr_lightning.cli.run_config import run_config

    config, lines = _config(options, output)
    return run_config(config, lines, options, Path(output) / SFT_YAML, f"dpr sft {shlex.join(arguments)}")


def init(arguments: Sequence[str]) -> None:
    """Write the config of SFT into a folder, to read and change before it is run.

    Raises:
        InputError: an option is wrong.
    """
    parser = OptionParser("init", "Write the config of a run, without running it.")
    parser.add_argument("output", metavar="FOLDER", help="folder of the run")
    _add_options(parser)
    parser.add_config_options()
    options = parser.parse_args(arguments)
    settle_libraries()
    from dpr_lightning.cli.run_config import write_checked

    config, lines = _config(options, options.output)
    path = Path(options.output) / SFT_YAML
    write_checked(config, lines, options, path, f"dpr init {shlex.join(arguments)}")
    print(f"Next: dpr fit --config {shlex.quote(str(path))}")


def _add_options(parser: OptionParser) -> None:
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument(
        "--train", required=True, type=rows, metavar="FILE", help="demonstrations: JSONL, CSV, Parquet, or owner/name"
    )
    parser.add_argument(
        "--columns", type=columns, metavar="prompt=NAME,completion=NAME", help="the file's own names of our columns"
    )
    parser.add_argument(
        "--validation",
        default="auto",
        type=rows,
        metavar="FILE",
        help="demonstrations that are not trained on; `none`: none (default: 5%% of the prompts, at least 20)",
    )
    parser.add_argument("--verifier", help="what scores answers: exact_match, numeric, answer, or module:function")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the demonstrations (default: 3)")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-4 below 1B parameters, 2e-5 above; LoRA: ×10")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters; 0: never (default: from 3B on)")
    parser.add_argument("--trim", action="store_true", help="hardly learn tokens that look wrong (docs/noisy.md)")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens; longer rows are dropped (default: 1024)")
    parser.add_argument("--batch_size", type=int, default=8, help="demonstrations a step on each device (default: 8)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the weights (default: as they are saved, where this machine computes in it)",
    )
    parser.add_argument("--limit", type=int, metavar="ROWS", help="read only the first rows")
    parser.add_argument("--seed", type=int, default=0)


def _config(options: Namespace, output: str) -> tuple[dict[str, Any], list[str]]:
    """The config of the run, and lines on the choices in it."""
    from dpr_lightning.data import open_rows
    from dpr_lightning.workflow import BaseModel, SftOptions, sft_config

    selected = SftOptions(
        model=options.model,
        train=options.train,
        output=output,
        validation=None if options.validation in ("none", "null") else options.validation,
        columns=options.columns,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        lora=options.lora,
        trim=options.trim,
        max_length=options.max_length,
        batch_size=options.batch_size,
        dtype=options.precision,
        verifier=options.verifier,
        seed=options.seed,
        limit=options.limit,
    )
    open_rows(options.train)  # a file that is missing is named before the model is read
    return sft_config(selected, BaseModel.read(options.model))
