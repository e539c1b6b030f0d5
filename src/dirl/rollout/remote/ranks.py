"""The processes of the trainer, as far as servers are their common concern."""

import torch.distributed as dist

from dirl.rollout.remote.update import Verdict


def rank_of_ranks() -> tuple[int, int]:
    """Which process of the trainer this is, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def everyones(verdicts: dict[str, Verdict], ranks: int) -> dict[str, Verdict]:
    """The verdicts of all ranks."""
    if ranks == 1:
        return verdicts
    gathered: list[dict[str, Verdict]] = [{}] * ranks
    dist.all_gather_object(gathered, verdicts)
    return {url: verdict for part in gathered for url, verdict in part.items()}
