"""LMDeploy reads an exported folder by its own means, in a process without this package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.autoregressive import causal_folder
from tests.unit.models.test_source import ALPHABET, new_model, qwen_folder

from dirl.models import AutoregressiveModel, PretrainedModel, save_model
from dirl.models.families import BlockLlamaFamily, DreamReasonerFamily, LLaDA2Family
from dirl.rollout.lmdeploy.model import check_served

READ = """
import sys, torch
from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.weight_loader.model_weight_loader import ModelWeightLoader
from lmdeploy.tokenizer import Tokenizer

folder, out = sys.argv[1:]
config = ModelConfig.from_pretrained(folder, trust_remote_code=True, dtype="float16")
loader = ModelWeightLoader(folder)
weights = {n: w.clone() for path in loader._shard_paths for n, w in loader._get_weights_iterator(path)}
assert "dirl" not in sys.modules
torch.save({
    "class": type(config.hf_config).__name__,
    "architectures": config.hf_config.architectures,
    "paradigm": config.model_paradigm,
    "window": config.sliding_window,
    "rope": dict(config.hf_config.rope_parameters),
    "sizes": [config.hidden_size, config.num_layers, config.head_dim, config.vocab_size],
    "experts": getattr(config.hf_config, "num_experts", None),
    "ids": Tokenizer(folder, trust_remote_code=True).encode("1+2=", add_bos=False),
    "weights": weights,
}, out)
"""


@pytest.mark.parametrize("kind", ["dense", "experts", "dreamreasoner", "adapted"])
def test_lmdeploy_reads_config_tokenizer_and_weights(kind: str, tmp_path: Path) -> None:
    moe, source = kind == "experts", new_model(block_size=4, rope_theta=1e6)
    source.family = DreamReasonerFamily() if kind == "dreamreasoner" else None
    if moe:
        qwen_folder(tmp_path / "qwen", moe=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
        source = PretrainedModel(str(tmp_path / "qwen"), block_size=4)
    if kind == "adapted":
        rope = {"rope_type": "default", "rope_theta": 1e6}
        causal_folder(tmp_path / "causal", alphabet=ALPHABET, rope_parameters=rope)
        source = AutoregressiveModel(str(tmp_path / "causal"))
    description = source.describe()
    backbone = source.build(description.config)
    save_model(tmp_path / "model", backbone, description.tokenizer)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "LMDEPLOY_ENABLE_CHECK_ENV": "0"}
    command = [sys.executable, "-c", READ, str(tmp_path / "model"), str(tmp_path / "seen.pt")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = torch.load(tmp_path / "seen.pt")
    assert (seen["class"], seen["architectures"]) == (
        ("SDARMoeConfig", ["SDARMoeForCausalLM"]) if moe else ("SDARConfig", ["SDARForCausalLM"])
    )
    assert (seen["paradigm"], seen["window"], seen["experts"]) == ("dllm", -1, 4 if moe else None)
    assert seen["rope"] == {"rope_type": "default", "rope_theta": 1e6}
    config = description.config
    assert seen["sizes"] == [config.hidden_size, 2, 8, config.vocab_size]
    assert seen["ids"] == description.tokenizer("1+2=", add_special_tokens=False)["input_ids"]
    expected = dict(description.family.weights(backbone))
    assert seen["weights"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(seen["weights"][name], value), name


@pytest.mark.parametrize("family", [BlockLlamaFamily, LLaDA2Family])
def test_what_lmdeploy_would_run_causally_or_not_at_all_is_refused(family: type) -> None:
    source = new_model(block_size=4)
    source.family = family()
    with pytest.raises(ValueError, match=r"knows no block-diffusion model of model_type='\w+': use dirl.rollout.Torch"):
        check_served(source.describe().config)
