"""A model spread over the processes of a run: replicated (DDP), sharded (FSDP2), or both (hybrid).

The loss of a micro-batch is handed in divided by the weight of the whole step (its masked tokens, say), so
that the gradients of all rows on all ranks simply add up: each target weighs the same, whoever computes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modernbert import runtime
from modernbert.errors import ConfigError
from modernbert.model.adapters import blank_like
from modernbert.model.checkpoint import Pretrained
from modernbert.model.heads import encoder_of
from modernbert.ops.fp8 import check_device
from modernbert.runtime import Precision
from modernbert.train.dtensor import gather, local
from modernbert.train.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Strategy = Literal["ddp", "fsdp", "hybrid"]
Model = TypeVar("Model", bound=Pretrained)


class Row(Protocol):
    """A micro-batch, which knows what to ask of a model."""

    @property
    def weight(self) -> float:
        """What its summed loss is divided by, on its own."""

    def to(self, device: torch.device) -> Self:
        """Return it on a device."""

    def loss(self, model: Any) -> tuple[Tensor, ...]:
        """Return its summed loss (fp32 scalar), and how much of it was right (int64 scalar).

        Behind these, of a loss of several parts, what they are: fp32 scalars, summed, without a gradient.
        """


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, kw_only=True)
class DistributionSettings:
    """How the run is spread over the processes that `torchrun` starts. One process alone spreads nothing.

    Attributes:
        strategy: `ddp`: each process holds all weights. `fsdp`: each holds a share of weights, gradients and
            optimizer. `hybrid`: shares within a group of processes, replicas over the groups.
        shard_ranks: For `hybrid`: processes of a group; null: those of one machine.
        activation_checkpointing: Keep only what enters each layer, and compute the rest again in the backward
            pass: less memory, a third more work.
        timeout_seconds: How long a process may stay at one thing before it is named, and with it the group
            ended, for the launcher to start again.
    """

    strategy: Strategy = "ddp"
    shard_ranks: int | None = None
    activation_checkpointing: bool = False
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.shard_ranks is not None and (self.strategy != "hybrid" or self.shard_ranks < 1):
            raise ConfigError(
                f"`shard_ranks` is {self.shard_ranks} with strategy `{self.strategy}`; it must be null, or "
                "with `hybrid` at least 1"
            )
        if not self.timeout_seconds > 0:
            raise ConfigError(f"`timeout_seconds` is {self.timeout_seconds}; it must be above 0")


class Spread(Generic[Model]):
    """A model on this process as a part of the model on all of them.

    It changes the model in place: build the optimizer after it.

    Args:
        model: With equal weights on all ranks, on `device`.
        ranks: The processes of the run.
        settings: How to spread it; None: not at all, and the model stays as it is.
        compiles: Whether to compile the layers.
        uses_fp8: Whether the layers' products run in fp8.
        device: Where this process computes.
        precision: Of forward and backward.

    Attributes:
        model: The same model, its parameters perhaps shards.
        ranks: The processes of the run.

    Raises:
        ConfigError: The processes are not a number of groups of `shard_ranks`, or a layer cannot be in fp8.
        BackendError: The device has no fp8.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        precision: Precision = "auto",
        ranks: Ranks = ALONE,
        settings: DistributionSettings | None = None,
        compiles: bool = False,
        uses_fp8: bool = False,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.device = device
        self._precision = precision
        self._num_replicas = ranks.size
        self._replica: DistributedDataParallel | None = None
        encoder = encoder_of(model)
        if uses_fp8:
            check_device(device)
            encoder.compute_in_fp8()
        if compiles:
            encoder.compile_layers()
        if settings is None:
            return
        encoder.recomputes_layers = settings.activation_checkpointing
        if ranks.size == 1:
            return
        if settings.strategy == "ddp":
            self._replica = DistributedDataParallel(_Loss(model), gradient_as_bucket_view=True)
        else:
            mesh = _mesh(ranks, settings, device)
            self._num_replicas = mesh.size(0) if mesh.ndim == 2 else 1
            _shard(model, mesh, runtime.uses_bf16(device, precision))

    def loss(self, row: Row) -> tuple[Tensor, ...]:
        """Return what `Row.loss` does, of a row on any device."""
        on_device = row.to(self.device)
        with runtime.autocast(self.device, self._precision):
            if self._replica and torch.is_grad_enabled():
                return cast(tuple[Tensor, ...], self._replica(on_device))
            return on_device.loss(self.model)

    def compute(self, row: AnyRow, question: Callable[[AnyRow, Any], Tensor]) -> Tensor:
        """Return what else a row asks of the model than its loss, without gradients."""
        with torch.no_grad(), runtime.autocast(self.device, self._precision):
            return question(row.to(self.device), self.model)

    def backward(self, mean: Tensor) -> None:
        """Add to the gradients those of a share of the step's mean loss.

        DDP and FSDP divide by the number of ranks what they add up over them.
        """
        (mean * self.ranks.size if self.ranks.size > 1 else mean).backward()

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Run one of a step's micro-batches, forward and backward.

        The ranks talk twice a step: sharded weights stay gathered from the first micro-batch to the last,
        after which alone gradients are added up.
        """
        if _is_sharded(self.model):
            self.model.set_requires_gradient_sync(is_last)
            self.model.set_is_last_backward(is_last)
            self.model.set_reshard_after_backward(is_last)
        with contextlib.nullcontext() if is_last or not self._replica else self._replica.no_sync():
            yield

    def squared_gradient_norm(self) -> Tensor:
        """Return this rank's part of the squared Euclidean norm of the gradient, in fp32."""
        grads = [local(param.grad) for param in self.model.parameters() if param.grad is not None]
        norm: Tensor = torch.nn.utils.get_total_norm(grads)
        return norm.float().square() / self._num_replicas

    def settle(self) -> None:
        """Let the parameters be the optimizer's again after a forward pass without a backward one."""
        for part in self.model.modules():
            if _is_sharded(part):
                part.reshard()

    def gathered(self) -> Model | None:
        """Return the whole model, a copy on the CPU, on the first rank; all ranks must call it.

        A model that is alone is whole as it is.
        """
        if self.ranks.size == 1:
            return self.model
        self.settle()
        whole = {}
        for name, tensor in self.model.state_dict().items():
            one = gather(local(tensor), tensor)
            if self.ranks.is_first:
                whole[name] = one.to("cpu", copy=True)
        if not whole:
            return None
        copy = cast(Model, blank_like(self.model))
        copy.load_state_dict(whole, assign=True)
        copy.tie_weights()
        is_trained = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        for name, parameter in copy.named_parameters():
            parameter.requires_grad_(is_trained[name])
        return copy


class _Loss(nn.Module):
    """A row's loss as a forward pass, which is what DDP wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: Row) -> tuple[Tensor, ...]:
        return row.loss(self.model)


def _is_sharded(model: nn.Module) -> TypeGuard[FSDPModule]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False  # and one process need not wait for the import
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _mesh(ranks: Ranks, settings: DistributionSettings, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if settings.strategy == "fsdp":
        return init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("shard",))
    group = settings.shard_ranks or ranks.local_size
    if ranks.size % group:
        raise ConfigError(
            f"`distribution.shard_ranks` is {group} (by default, the processes of one machine) and there are "
            f"{ranks.size} processes; they must be a multiple of it; choose a divisor"
        )
    return init_device_mesh(device.type, (ranks.size // group, group), mesh_dim_names=("replicate", "shard"))


def _shard(model: Pretrained, mesh: DeviceMesh, is_bf16: bool) -> None:
    """Shard each layer, and the rest with the whole model.

    Under bf16 the matrices travel in bf16, which is what autocast would make of them anyway; norms,
    embeddings and decoder stay fp32, as they do there. So sharding changes memory, not figures.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy()
    if is_bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in encoder_of(model).layers:
        # A list is one group: its weights travel together.
        parts = [block.get_submodule("attn"), block.get_submodule("mlp")] if is_bf16 else [block]
        fully_shard(parts, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    for name in ("loss", "learn"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
