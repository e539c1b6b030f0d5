"""What training keeps: the settings of a run that decide on memory, and the bytes of all that lies still in it."""

from dataclasses import dataclass, replace
from typing import Literal

from dirl.models.shape import ModelShape
from dirl.modules.layers import Checkpointing
from dirl.planning.activations import ActivationBytes, Compute, activation_bytes
from dirl.planning.adapters import AdapterShape, adapter_activation_bytes

StrategyName = Literal["single", "ddp", "fsdp2"]


@dataclass(frozen=True)
class TrainingSetup:
    """What the memory of training depends on.

    Args:
        devices: in all.
        mixed: bf16 compute over fp32 weights.
        tokens: of the largest row.
        scored_share: of a row's tokens that meet the vocabulary.
        head_chunk: rows that meet it at a time; None: what `CHUNK_BYTES` hold.
        bucket_view: DDP's gradients lie in its buckets, which are a copy of them otherwise.
        reference: where the frozen model of the KL term has its weights.
        offload_optimizer: its state is on the host in rollouts and pushes.
        value: of a value model with a backbone of its own, which has its turn when the policy's backward has ended.
        adapters: of LoRA: they learn, and all other weights of the policy are frozen, in the precision of compute.
        shard_size: devices that FSDP2 shards one copy of the model over; None: all.
        tensor: devices of a tensor-parallel group, of which each has a part of every matrix of a layer.
        cpu_offload: FSDP2's shards, gradients and optimizer state are on the host.
    """

    shape: ModelShape
    strategy: StrategyName
    devices: int
    mixed: bool
    checkpointing: Checkpointing
    tokens: int
    scored_share: float
    head_chunk: int | None = None
    bucket_view: bool = False
    reference: Literal["none", "device", "host"] = "none"
    offload_optimizer: bool = False
    value: ModelShape | None = None
    adapters: AdapterShape | None = None
    shard_size: int | None = None
    tensor: int = 1
    cpu_offload: bool = False

    @property
    def compute(self) -> Compute:
        if not self.mixed:
            return "fp32"
        return "fsdp_bf16" if self.strategy == "fsdp2" or self.adapters is not None else "autocast"

    @property
    def kept(self) -> ActivationBytes:
        if self.adapters is None:
            return activation_bytes(self.part, self.compute, self.checkpointing)
        return adapter_activation_bytes(self.shape, self.adapters, self.compute, self.checkpointing)

    @property
    def of_value(self) -> "TrainingSetup":
        """The set-up with the value model, which has a head of its own and no adapters, in place of the policy."""
        assert self.value is not None
        return replace(self, shape=replace(self.value, tie_word_embeddings=False), adapters=None)

    @property
    def part(self) -> ModelShape:
        """What one device of a tensor-parallel group computes with: tables and norms are whole."""
        return self.shape.cut(self.tensor)

    @property
    def shards(self) -> int:
        """Devices that a copy of the weights lies on, each part of them once."""
        return (self.shard_size or self.devices) if self.strategy == "fsdp2" else 1

    @property
    def gathered_over(self) -> int:
        """Devices from which FSDP2 gathers."""
        return self.shards // self.tensor

    @property
    def gathered_bytes(self) -> float:
        """Bytes of a gathered weight, in the precision of compute."""
        return 2.0 if self.mixed else 4.0


def policy_bytes(setup: TrainingSetup) -> float:
    """Bytes of the policy's weights, those that are frozen included."""
    frozen = 2.0 if setup.adapters is not None and setup.mixed else 4.0
    return (frozen * setup.shape.parameters + adapters_bytes(setup)) / setup.shards


def adapters_bytes(setup: TrainingSetup) -> float:
    return 0.0 if setup.adapters is None else 4.0 * setup.adapters.parameters(setup.shape)


def value_weights_bytes(setup: TrainingSetup) -> float:
    """Bytes of a value model's backbone without its head, tied or not."""
    shape = setup.value
    return 0.0 if shape is None else 4.0 * replace(shape, tie_word_embeddings=True).parameters / setup.shards


def trained_bytes(setup: TrainingSetup) -> float:
    """Bytes of all weights that learn."""
    policy = policy_bytes(setup) if setup.adapters is None else adapters_bytes(setup) / setup.shards
    return policy + value_weights_bytes(setup)


def reference_bytes(setup: TrainingSetup) -> float:
    """Bytes of the reference model, which is frozen, in the precision of compute."""
    size = 2.0 if setup.mixed else 4.0
    return size * setup.shape.parameters / setup.shards if setup.reference == "device" else 0.0


def gradients_bytes(setup: TrainingSetup) -> float:
    buckets = setup.strategy == "ddp" and not setup.bucket_view
    return trained_bytes(setup) * (2 if buckets else 1)


def optimizer_bytes(setup: TrainingSetup) -> float:
    """AdamW's two moments; the fused step makes no tables of its own."""
    return 2 * trained_bytes(setup)
