"""RL runs with LMDeploy's engine: they learn what runs with the torch engine learn, asleep between rollouts or not."""

from pathlib import Path

import pytest
import torch
from tests.integration.test_overlap import CAP, with_engine
from tests.integration.test_runs import fit, rl_args, weights
from tests.integration.toy import metrics
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.rollout import LMDeployEngine
from dirl.types import ModelSpec


class LMDeployHere(LMDeployEngine):
    """Takes the trainer's CPU for a GPU."""

    def __init__(self, sleep: bool = False) -> None:
        super().__init__(max_batch_size=8, kv_blocks=32, page_tokens=16, prefill_tokens=64, sleep=sleep)

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        assert device == "cpu"
        super().setup(config, tokenizer, spec, "cuda")
        self.dtype = torch.float32  # of the model that stands in for LMDeploy's


@pytest.mark.parametrize("options", [{}, {"sleep": True}, {"overlap": True}], ids=["", "sleep", "overlap"])
def test_a_run_ends_with_the_weights_of_one_with_the_torch_engine(tmp_path: Path, options: dict[str, bool]) -> None:
    overlap = "        overlap: true" if options.get("overlap") else ""
    args = [*rl_args(tmp_path, rollout=overlap), CAP, "--trainer.max_epochs=3"]
    name = "tests.lmdeploy.test_lmdeploy_runs.LMDeployHere"
    with lmdeploy_on_cpu(block_size=4):
        ours = fit(tmp_path / "lmdeploy", *args, *with_engine(tmp_path, name, sleep=options.get("sleep", False)))
    reference = fit(tmp_path / "torch", *args)
    assert len(metrics(ours, "rollout/reward")) == 3
    assert metrics(ours, "rollout/reward") == pytest.approx(metrics(reference, "rollout/reward"), abs=1e-6)
    for key, value in weights(reference).items():
        # behaviour log-probs differ by 1e-6 between the engines, and AdamW magnifies what is near zero
        torch.testing.assert_close(weights(ours)[key], value, rtol=0, atol=1e-4)
