"""Which prompts count as the same prompt, and which of them are held out."""

import hashlib
import unicodedata

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.errors import InputError


def prompt_hash(text: str) -> int:
    """64 bits of a prompt's text; prompts that differ only in white space or in Unicode composition are the same."""
    normal = " ".join(unicodedata.normalize("NFC", text).split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest(), "big", signed=True)


def hold_out_prompts(prompt_hashes: NDArray[np.int64], fraction: float, seed: int, source: str) -> NDArray[np.bool_]:
    """[N] True for rows to hold out: all rows of a share of the *prompts*, so that no prompt is on both sides.

    The choice depends on the prompts' texts and on ``seed``, not on the order of the rows.

    Args:
        prompt_hashes: [N] from :func:`prompt_hash`.
        fraction: share of the different prompts.
        seed: of the choice.
        source: name of the file, for messages.

    Raises:
        InputError: the share is not in (0, 1), or one side would be empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"A share held out for validation must lie between 0 and 1; found {fraction}.")
    unique, inverse = np.unique(prompt_hashes, return_inverse=True)
    held_out = max(1, round(fraction * len(unique)))
    if held_out >= len(unique):
        raise InputError(
            f"{source} has only {len(unique)} different prompts: too few to hold out {fraction:.0%} of them. Give "
            "`validation` a separate file."
        )
    selected_prompts = np.zeros(len(unique), dtype=np.bool_)
    selected_prompts[np.argsort(scrambled(unique, seed), kind="stable")[:held_out]] = True
    held_out_rows: NDArray[np.bool_] = selected_prompts[inverse]
    return held_out_rows


def prompt_folds(prompt_hashes: NDArray[np.int64], folds: int, seed: int, source: str) -> NDArray[np.int64]:
    """[N] the fold of each row, from 0: all rows of a prompt are in one fold, and folds differ by one prompt at most.

    The choice depends on the prompts' texts and on ``seed``, not on the order of the rows.

    Args:
        prompt_hashes: [N] from :func:`prompt_hash`.
        folds: their number.
        seed: of the choice.
        source: name of the file, for messages.

    Raises:
        InputError: there is one fold or none, or there are more folds than prompts.
    """
    if folds < 2:
        raise InputError(
            f"`folds` is {folds}, and each fold is scored by a policy that learns from the others: take 2 or more."
        )
    unique, inverse = np.unique(prompt_hashes, return_inverse=True)
    if folds > len(unique):
        raise InputError(
            f"`folds` is {folds}, and {source} has {len(unique)} different prompts: each fold takes at least one. Set "
            f"`folds` to {len(unique)} or less."
            if len(unique) > 1
            else f"`folds` is {folds}, and {source} has one prompt alone, which cannot be divided. Leave `folds` out."
        )
    fold = np.empty(len(unique), dtype=np.int64)
    fold[np.argsort(scrambled(unique, seed), kind="stable")] = np.arange(len(unique)) % folds
    result: NDArray[np.int64] = fold[inverse]
    return result


def scrambled(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random number for each value and seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result
