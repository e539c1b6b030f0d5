"""New weights into LMDeploy's model, in place: what each process of an engine does with them."""

from typing import Any

import torch
from torch import Tensor, nn


def load(agent: Any, bucket: list[tuple[str, Tensor]]) -> None:
    """Copy whole tensors into a model agent's parameters; under tensor parallelism it takes its own part of each."""
    with agent.all_context():
        agent._load_updated_weight_bucket(bucket, "dirl")
        torch.cuda.synchronize()  # who gave the tensors may change or free them now


def finish(agent: Any) -> None:
    """After the last bucket: what LMDeploy computes from weights, and no graph that reads places they have left."""
    from lmdeploy.pytorch.weight_loader.model_weight_loader import process_weights_after_loading

    with agent.all_context():
        model = agent.patched_model.get_model()
        before = _addresses(model)
        process_weights_after_loading(model)
        torch.cuda.synchronize()
        if _addresses(model) != before:  # as where experts are laid out anew, which only the first update does
            agent.reset_graph_runner()


def _addresses(model: nn.Module) -> dict[str, int]:
    """Where each parameter lies, tied ones under both names."""
    return {name: value.data_ptr() for name, value in model.named_parameters(remove_duplicate=False)}
