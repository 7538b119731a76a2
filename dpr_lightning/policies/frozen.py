"""Frozen copies: π_SFT and the references, as full models or as adapters over one shared base."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dpr_lightning.engine import Lockstep, has_adapters, weight_bytes
from dpr_lightning.engine.lockstep import minimal_forward
from dpr_lightning.errors import InputError
from dpr_lightning.policies.adapters import base_of, changes_nothing_else, is_adapter, load_adapter, resolve_adapter
from dpr_lightning.policies.build import build_policy
from dpr_lightning.policies.outline import materialise, on_meta_device, outline_policy
from dpr_lightning.policies.policy_spec import AUTO, Dtype, PolicySpec
from dpr_lightning.policies.sharding import Weights, distribute, holds_whole
from dpr_lightning.policies.sources import lasting_source
from dpr_lightning.policies.tokenizers import load_tokenizer, same_vocabulary

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


class FrozenPolicies:
    """Models that compute log-probabilities and are never trained.

    Not an ``nn.Module``, so that checkpoints, optimizers and gradient synchronisation do not include them.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        shared: "PeftModel | None" = None,
        folders: Mapping[str, str] | None = None,
    ) -> None:
        """Full ``models`` by name; or, with ``shared``, names of adapters on that peft model.

        ``folders``: from which they were loaded, by name; None: from none.
        """
        self._models = dict(models)
        self.folders = dict(folders or {})
        self._shared = shared
        if shared is None:
            for model in self._models.values():
                model.requires_grad_(False)
                model.eval()

    @classmethod
    def load(
        cls,
        folders: Mapping[str, str],
        *,
        dtype: Dtype = "float32",
        attention: str = AUTO,
        policy: nn.Module | None = None,
        policy_spec: PolicySpec | None = None,
        weights: Weights = "whole",
        device: torch.device | None = None,
    ) -> "FrozenPolicies":
        """Load the policies in ``folders``; all must share one vocabulary.

        If ``policy`` is being trained with LoRA and every folder is an adapter of its base, they become further
        adapters on it and need no other copy of the base. Otherwise, with several ranks, ``weights`` determines whether
        every rank has whole copies or a shard on its ``device`` (by FSDP2, with any strategy of the policy).

        Raises:
            InputError: a folder cannot be loaded, or two tokenizers differ.
        """
        adapters = {name: resolve_adapter(PolicySpec(source=folder))[1] for name, folder in folders.items()}
        check_one_vocabulary(folders)
        if policy is not None and policy_spec is not None and has_adapters(policy):
            base, _ = resolve_adapter(policy_spec)
            if all(
                folder is not None and _same_base(base_of(folder), base) and changes_nothing_else(folder, policy)
                for folder in adapters.values()
            ):
                for name, adapter in adapters.items():
                    load_adapter(policy, str(adapter), trainable=False, name=name)
                log.info("π_SFT and its references: adapters on the policy's base, for they have the same one.")
                return cls({name: policy for name in folders}, shared=policy, folders=folders)
        specs = {name: PolicySpec(source=folder, dtype=dtype, attention=attention) for name, folder in folders.items()}
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        may_share = weights != "whole" and ranks > 1 and device is not None
        models: dict[str, nn.Module] = {}
        mesh: DeviceMesh | None = None
        for name, spec in specs.items():
            # In host memory, even if the trainer builds on another device, which may be too small for a whole copy.
            with torch.device("cpu"):
                models[name] = build_policy(spec, trainable=False)[0]
            if may_share and len(models) == 1:
                assert device is not None
                weight_size = len(specs) * weight_bytes(models[name])
                if not holds_whole(weights, weight_size, device, "π_SFT and its references"):
                    mesh = init_device_mesh(device.type, (ranks,))
            if mesh is not None:
                distribute(models[name], mesh, trained=False)  # before the next one is loaded
        return cls(models, folders=folders)

    @classmethod
    def outline(
        cls, folders: Mapping[str, str], *, dtype: Dtype, attention: str, policy: nn.Module, policy_spec: PolicySpec
    ) -> "FrozenPolicies":
        """Called where memory is counted in place of :meth:`load`: models without content, in the shape of ``policy``.

        The folders need not exist: what is not there yet counts as a further adapter where the policy has adapters.
        """
        if has_adapters(policy) and all(is_adapter(folder) or not Path(folder).exists() for folder in folders.values()):
            active = policy.active_adapter
            config = copy(policy.peft_config[active])
            config.inference_mode = True
            with on_meta_device():  # to be materialised, as peft moves no weight from there
                for name in folders:
                    policy.add_adapter(name, config)
            materialise(policy)
            policy.set_adapter(active)
            return cls({name: policy for name in folders}, shared=policy)
        spec = replace(policy_spec, dtype=dtype, attention=attention, lora=None, checkpoint=None)
        return cls({name: materialise(outline_policy(spec, trainable=False)) for name in folders})

    @property
    def models(self) -> list[nn.Module]:
        """The models, in the order of ``names``; the same one again where they are adapters on one base."""
        return list(self._models.values())

    @property
    def is_shared(self) -> bool:
        """Whether the copies are adapters on the base of the policy in training."""
        return self._shared is not None

    @property
    def names(self) -> list[str]:
        """Names, in the order of ``load``."""
        return list(self._models)

    def to(self, device: torch.device | str) -> "FrozenPolicies":
        """Move full copies to ``device``; adapters are on the device of their base."""
        if self._shared is None:
            for model in self._models.values():
                model.to(device)
        return self

    def in_step(self) -> Lockstep:
        """For loops that :meth:`use` each model in turn, a number of times that differs between ranks; see Lockstep."""

        def idle() -> None:
            for name in self._models:
                with self.use(name) as model:
                    minimal_forward([model])

        return Lockstep(list(self._models.values()), idle)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """The named model, in evaluation mode; with adapters, the trained one is active again afterwards."""
        model = self._shared
        if model is None:
            yield self._models[name]
            return
        active, training = model.active_adapter, model.training
        # Only the adapter of the forward pass changes here, not requires_grad of any weight.
        model.set_adapter(name, inference_mode=True)
        model.eval()
        try:
            yield model
        finally:
            model.set_adapter(active)
            model.train(training)


def _same_base(first: PolicySpec, second: PolicySpec) -> bool:
    def key(spec: PolicySpec) -> tuple[object, ...]:
        return (spec.source and lasting_source(spec.source, spec.revision), spec.gguf_file)

    return key(first) == key(second)


def check_one_vocabulary(folders: Mapping[str, str]) -> None:
    """Refuse policies whose tokenizers differ: the same token id would be another token.

    Raises:
        InputError: names the two folders and the first difference.
    """
    tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
    first = next(iter(folders))
    for name, tokenizer in tokenizers.items():
        difference = same_vocabulary(tokenizers[first], tokenizer)
        if difference is not None:
            raise InputError(
                f"The tokenizers of {folders[first]!r} and {folders[name]!r} differ: {difference}. π_SFT and its "
                "references must be checkpoints of one run."
            )
