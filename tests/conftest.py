"""Fixtures that tests of several folders ask for."""

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest
import torch
from jaxtyping import install_import_hook
from tests import typechecker

# Before anything imports them: beartype holds what these take and give against the shapes that they name. Not what the
# compiler goes through, in dirl.attention.sdpa, flex and backend, dirl.autocast, dirl.models.experts and
# backbones.llada2: their tests wrap the functions. Nor where any shape will do, in dirl.models.tensor_parallel and the
# families' `split`, nor dirl.rollout.remote.update, which hands bytes on to weight_sender; and
# dirl.rollout.lmdeploy.changes gets sequences of LMDeploy's own from its tests. The fields of NamedTuples (RowLoss,
# LowRank) are beyond the hook.
SHAPED = [
    *("dirl.losses", "dirl.attention.visibility", "dirl.diffusion.commit", "dirl.diffusion.sampling"),
    *("dirl.attention.segments", "dirl.attention.segment_attention", "dirl.attention.intervals"),
    *("dirl.batches", "dirl.finite", "dirl.packing.pieces", "dirl.evaluation.problem_means", "dirl.rollout.weights"),
    *(f"dirl.diffusion.{name}" for name in ("drawing", "noise", "views")),
    *(f"dirl.models.{name}" for name in ("head", "chunked_head", "policy", "value", "mask_row")),
    *(f"dirl.models.{name}" for name in ("adapter_files", "autoregressive", "checkpoint_weights", "export")),
    *(f"dirl.models.{name}" for name in ("weight_files", "weight_writer", "families.low_rank", "families.weights")),
    *(f"dirl.modules.{name}" for name in ("backward", "base", "columns", "guard", "learners", "optimization")),
    *(f"dirl.modules.{name}" for name in ("rl", "sft", "step_sums", "value")),
    "dirl.objectives",
    "dirl.rollout.lmdeploy.rank_group",
    *(f"dirl.rollout.remote.{name}" for name in ("cuda_ipc", "pair_group", "weight_sender", "weight_transfer")),
    *(f"dirl.rollout.torch.{name}" for name in ("active", "modules", "slot_cache", "stripped")),
]
install_import_hook(SHAPED, f"{typechecker.__name__}.check")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports `datasets`: what it keeps goes to a folder of this session."""
    cache = TemporaryDirectory(prefix="dirl-tests-")
    os.environ["HF_DATASETS_CACHE"] = cache.name
    config.add_cleanup(cache.cleanup)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order; and two test processes share two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
