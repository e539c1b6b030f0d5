"""LMDeploy's engine behind HTTP: calls share its batch, and it sleeps and wakes by the trainer's word."""

import pytest
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from tests.unit.rollout.serving import DESCRIPTION, PARAMS, SPEC, WEIGHTS, requests, served, torch_engine

from dirl.rollout import LMDeployEngine, ServerEngine


@pytest.mark.parametrize("sleep", [False, True])
def test_trajectories_by_http_equal_the_torch_engines(sleep: bool) -> None:
    wanted = requests(prompts=6, group=4)
    reference = torch_engine()
    reference.update_weights(WEIGHTS.named_parameters(), 0)
    expected = {t.key: t for t in reference.generate(wanted, PARAMS)}
    with lmdeploy_on_cpu(SPEC.block_size):
        hosted = LMDeployEngine(max_batch_size=8, kv_blocks=32, page_tokens=16, prefill_tokens=64, sleep=sleep)
        hosted.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cuda")
        server = served(hosted)
        engine = ServerEngine([server.url], transport="http")
        engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cpu")
        for version in (0, 1):  # the second time awake again
            engine.update_weights(WEIGHTS.named_parameters(), version)
            made = {t.key: t for t in engine.generate(wanted, PARAMS)}
            assert made.keys() == expected.keys()
            for key, trajectory in made.items():
                assert trajectory.response_ids == expected[key].response_ids
                assert trajectory.step_map == expected[key].step_map
                assert trajectory.policy_version == version
                assert trajectory.behaviour_logprobs == pytest.approx(expected[key].behaviour_logprobs, abs=1e-5)
            engine.sleep()
            assert (engine.policy_version == -1) == sleep
        engine.close()
        server.stop()
        hosted.close()
