"""What is told of a rollout: its values for the loggers, and warnings where it has nothing to learn from."""

import logging

import lightning as L
import torch

from dirl.errors import NothingToLearnError, together
from dirl.evaluation import ResponseMetrics
from dirl.modules import RLModule
from dirl.rl.collector import Collection
from dirl.rl.staleness import stale_groups

log = logging.getLogger(__name__)

COUNTS = ("dropped_uniform", "dropped_failed", "dropped_stale", "missing", "rounds")
SHOWN = ("rollout/reward", "rollout/accuracy")
"""Values that the progress bar shows."""


class RolloutAccount:
    """The values of the rollout of the epoch under way, over all ranks, and how many in a row had nothing to teach.

    Args:
        max_empty_rollouts: rollouts in a row that may bring no group to learn from; one more ends the run.
    """

    def __init__(self, max_empty_rollouts: int) -> None:
        self.max_empty_rollouts, self.empty_rollouts = max_empty_rollouts, 0
        self.metrics: ResponseMetrics | None = None
        self.values: dict[str, float] = {}
        self._logged = self._said_uniform = False

    def take(self, trainer: L.Trainer, pl_module: RLModule, collection: Collection, times: dict[str, float]) -> None:
        """Take the values of a rollout that was made; all ranks call it.

        Args:
            times: seconds of this rank by name, those of generation and rewards apart.
        """
        self.metrics.to(pl_module.device)
        self.metrics.reset()
        self.metrics.update(collection.sampled, collection.lost)
        values = {f"rollout/{name}": value for name, value in self.metrics.compute().items()}
        times = times | {"generate_s": collection.generate_s, "reward_s": collection.reward_s}
        summed_s = pl_module.sum_over_processes(torch.tensor(list(times.values()), dtype=torch.float64))
        mean_s = (summed_s / trainer.world_size).tolist()
        values |= {f"time/{name}": value for name, value in zip(times, mean_s, strict=True)}
        counts = counts_of(collection, trainer.global_step)
        summed = pl_module.sum_over_processes(torch.tensor(list(counts.values()), dtype=torch.float64))
        sums = dict(zip(counts, summed.tolist(), strict=True))
        sums["staleness"] /= max(sums["groups"], 1)  # optimizer steps that the policy has moved since it sampled
        self._count_empty(sums)
        if trainer.is_global_zero:
            self._warn(sums, pl_module.objective.needs_advantages)
        self.values, self._logged = values | {f"rollout/{name}": value for name, value in sums.items()}, False

    def log(self, pl_module: RLModule) -> None:
        """Once in each start: loggers get it at the end of the epoch, which a killed run has not reached.

        The values are those of all ranks already. `sync_dist` would reduce them where they are first read, and the
        progress bar reads them on the first rank alone.
        """
        for name, value in ({} if self._logged else self.values).items():
            pl_module.log(name, value, prog_bar=name in SHOWN, on_step=False, on_epoch=True, batch_size=1)
        self._logged = True

    def state_dict(self) -> dict:
        """It holds the values of the rollout under way: what goes on from here logs them at the end of its epoch."""
        return {"empty_rollouts": self.empty_rollouts, "pending": self.values}

    def load_state_dict(self, state_dict: dict) -> None:
        self.empty_rollouts, self.values = state_dict["empty_rollouts"], state_dict["pending"]
        self._logged = False

    def _count_empty(self, sums: dict[str, float]) -> None:
        self.empty_rollouts = 0 if sums["groups"] else self.empty_rollouts + 1
        if self.empty_rollouts > self.max_empty_rollouts:
            raise together(
                NothingToLearnError(
                    f"no group of the last {self.empty_rollouts} rollouts has anything to learn from "
                    f"(max_empty_rollouts={self.max_empty_rollouts}); of the last one, {sums['dropped_uniform']:g} "
                    f"groups had no spread and {sums['dropped_failed']:g} failed rewards: look at the rewards and at "
                    "trajectories (rollout.save_trajectories), raise group_size or max_response_tokens, or take easier "
                    "prompts"
                )
            )

    def _warn(self, sums: dict[str, float], by_advantages: bool) -> None:
        if not sums["groups"]:
            log.warning(
                "no group of this rollout has anything to learn from (%d without spread, %d with failed rewards): its "
                "optimizer steps are skipped; look at the rewards, or raise group_size or max_response_tokens",
                sums["dropped_uniform"],
                sums["dropped_failed"],
            )
        elif by_advantages and sums["uniform_groups"] == sums["groups"] and not self._said_uniform:
            self._said_uniform = True
            log.warning(
                "each group of this rollout has one reward for all of its responses: every advantage is 0, so are loss "
                "and gradient, and the optimizer steps teach nothing; look at the rewards (rollout/reward, "
                "rollout/accuracy), raise group_size, or drop such groups with dynamic_sampling "
                "(said once; rollout/uniform_groups counts them)"
            )


def counts_of(collection: Collection, policy_version: int) -> dict[str, float]:
    """The counts of one rank, to be summed over all."""
    return {
        **{name: collection.counts[name] for name in COUNTS},
        "reward/incomparable": collection.counts["incomparable"],
        "groups": len(collection.groups),
        "uniform_groups": sum(not any(t.advantage for t in group) for group in collection.groups),
        "response_tokens": sum(t.response_length for t in collection.sampled),
        "stale_groups": stale_groups(collection.groups, policy_version),
        "staleness": sum(policy_version - group[0].policy_version for group in collection.groups),
    }
