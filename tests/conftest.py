"""Fixtures that tests of several folders ask for."""

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest
import torch
from jaxtyping import install_import_hook
from tests import typechecker

# Before anything imports them: beartype holds what these take and give against the shapes that they name. Not
# dirl.diffusion.noise, whose settings say themselves what is wrong with them, nor what the compiler goes through, in
# dirl.attention.sdpa, flex and backend: their tests wrap the functions.
SHAPED = [
    *("dirl.losses", "dirl.attention.visibility", "dirl.diffusion.commit", "dirl.diffusion.sampling"),
    *("dirl.attention.segments", "dirl.attention.segment_attention", "dirl.attention.intervals"),
    *("dirl.models.head", "dirl.models.chunked_head"),
    *("dirl.batches", "dirl.diffusion.views", "dirl.packing.pieces"),
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
