"""The replay engine: hands out trajectories from a file, so that a run can be repeated or trained offline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.models.shape import ModelShape
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.memory import NO_ENGINE, EngineMemory, RolloutSize
from dirl.trajectory_files import read_trajectories
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory


class ReplayEngine(RolloutEngine):
    """Answers each request with the stored trajectory of the same prompt id and sample index.

    Args:
        path: JSON Lines written by `lightning run rollout` with the same data, model and decoding settings.
    """

    stale = True  # a file does not say which weights its policy version stands for

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def memory(cls, options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
        return NO_ENGINE

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        self.stored: dict[tuple[str, int], Trajectory] = {}
        for trajectory in read_trajectories(self.path):
            trajectory.check(spec)
            if trajectory.key in self.stored:
                raise ValueError(
                    f"{self.path}: trajectory {trajectory.prompt_id}#{trajectory.sample_index} stands twice"
                )
            self.stored[trajectory.key] = trajectory
        if not self.stored:
            raise ValueError(f"{self.path}: holds no trajectories")

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """The stored trajectories keep the version that sampled them; the weights are not even gathered."""
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        for request in requests:
            name = f"{request.prompt_id}#{request.sample_index}"
            trajectory = self.stored.get((request.prompt_id, request.sample_index))
            if trajectory is None:
                raise ValueError(
                    f"{self.path}: no trajectory {name} among {len(self.stored)}; use the data and a group size no "
                    "larger than those the file was made with"
                )
            if trajectory.prompt_ids != request.prompt_ids:
                raise ValueError(f"{self.path}: trajectory {name} was made from another prompt than the data's")
            if trajectory.response_length > decoding.max_response_tokens:
                raise ValueError(
                    f"{self.path}: trajectory {name} has response_length={trajectory.response_length}, over decoding."
                    f"max_response_tokens={decoding.max_response_tokens}; use the decoding settings of the file"
                )
            yield trajectory
