"""What of LMDeploy's engine needs no LMDeploy: its settings, the folder it starts from, weights by name and bucket."""

import importlib.metadata
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny import EXPERTS, SHAPE, TinyModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from dirl.models import SDARConfig, SDARMoeConfig, register_models
from dirl.models.shape import ModelShape
from dirl.rollout import LMDeployEngine
from dirl.rollout.lmdeploy import checks
from dirl.rollout.lmdeploy.loop_thread import LoopThread
from dirl.rollout.lmdeploy.model import write_model_folder
from dirl.rollout.memory import RolloutSize

BLOCKS = dict(block_size=8, mask_token_id=19)


# --------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_batch_size", 0),
        ("bucket_mb", 0),
        ("prefill_tokens", -1),
        ("tp", 0),
        ("kv_blocks", 15),
        ("kv_blocks", -1),
        ("kv_memory_share", 0.0),
        ("kv_memory_share", 1.0),
        ("page_tokens", 8),
        ("page_tokens", 48),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_and_value(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"engine\.{setting}={value}: use "):
        LMDeployEngine(**{setting: value})


def refusal(engine: LMDeployEngine, block_size: int, device: str) -> str:
    description = TinyModel(4).describe()
    spec = replace(description.spec, block_size=block_size)
    with pytest.raises(ValueError) as caught:
        engine.setup(description.config, description.tokenizer, spec, device)
    return str(caught.value)


def test_a_cpu_is_refused_for_the_torch_engine() -> None:
    message = refusal(LMDeployEngine(), 4, "cpu")
    assert "needs a CUDA device, not 'cpu'" in message and "dirl.rollout.TorchEngine" in message


@pytest.mark.parametrize(("block_size", "page_tokens"), [(3, 64), (12, 64), (32, 16)])
def test_blocks_that_do_not_fit_into_pages_are_refused_for_the_torch_engine(block_size: int, page_tokens: int) -> None:
    message = refusal(LMDeployEngine(page_tokens=page_tokens), block_size, "cuda")
    assert f"block_size={block_size}: " in message and f"page_tokens={page_tokens}" in message
    assert "dirl.rollout.TorchEngine" in message


@pytest.mark.parametrize("prefill_tokens", [124, 130], ids=["a block for each sequence", "whole blocks"])
def test_a_prefill_that_holds_no_block_of_every_sequence_is_refused(prefill_tokens: int) -> None:
    message = refusal(LMDeployEngine(max_batch_size=32, prefill_tokens=prefill_tokens), 4, "cuda")
    assert f"engine.prefill_tokens={prefill_tokens}: " in message and "block_size=4" in message and "= 128" in message


def test_without_lmdeploy_setup_says_so_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("LMDEPLOY_ENABLE_CHECK_ENV", "0")  # setup sets it: put back after the test
    description = TinyModel(4).describe()
    engine, threads = LMDeployEngine(), threading.active_count()
    with pytest.raises(ImportError, match="not installed"):
        engine.setup(description.config, description.tokenizer, description.spec, "cuda")
    assert threading.active_count() == threads
    engine.close()  # nothing to give back, and no error


def test_a_device_that_is_not_there_is_said_at_once_and_not_waited_for() -> None:
    before = threading.active_count()
    with pytest.raises((RuntimeError, AttributeError)):
        LoopThread(torch.device("cuda", 99))  # a build for CPU does not even have the function
    assert threading.active_count() == before


# ------------------------------------------------------------------------------- the folder it starts from


def folder_of(config: PreTrainedConfig, folder: Path) -> tuple[dict, PreTrainedConfig]:
    """config.json as written, and as transformers reads it."""
    register_models()
    write_model_folder(folder, config, TinyModel(8).describe().tokenizer, "bfloat16")
    return json.loads((folder / "config.json").read_text()), AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("kind", [SDARConfig, Qwen3Config])
def test_a_dense_models_folder_loads_as_sdar(kind: type[PreTrainedConfig], tmp_path: Path) -> None:
    written, read = folder_of(kind(**SHAPE, **BLOCKS, rope_theta=5000.0), tmp_path)
    assert type(read) is SDARConfig
    assert (written["model_type"], written["architectures"]) == ("sdar", ["SDARForCausalLM"])
    assert {name: getattr(read, name) for name in SHAPE | BLOCKS} == SHAPE | BLOCKS
    assert read.rope_parameters["rope_theta"] == 5000.0
    assert read.dtype == torch.bfloat16
    assert written["sliding_window"] is None and "attention_bias" in written


@pytest.mark.parametrize("kind", [SDARMoeConfig, Qwen3MoeConfig])
def test_a_model_with_experts_loads_as_sdar_moe(kind: type[PreTrainedConfig], tmp_path: Path) -> None:
    written, read = folder_of(kind(**SHAPE, **EXPERTS, **BLOCKS), tmp_path)
    assert type(read) is SDARMoeConfig
    assert (written["model_type"], written["architectures"]) == ("sdar_moe", ["SDARMoeForCausalLM"])
    assert {name: getattr(read, name) for name in EXPERTS | BLOCKS} == EXPERTS | BLOCKS


def test_the_folder_holds_the_tokenizer_and_no_weights(tmp_path: Path) -> None:
    folder_of(SDARConfig(**SHAPE, **BLOCKS), tmp_path)
    tokenizer = TinyModel(8).describe().tokenizer
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    assert not list(tmp_path.glob("*.safetensors*")) and not list(tmp_path.glob("*.bin"))


def test_writing_the_folder_leaves_the_config_as_it_is(tmp_path: Path) -> None:
    config = Qwen3Config(**SHAPE, **BLOCKS)
    before = config.to_dict()
    folder_of(config, tmp_path)
    assert config.to_dict() == before and config.model_type == "qwen3"


# ------------------------------------------------------------------------------------ tensor parallelism

A3B = replace(
    ModelShape.dense(Qwen3Config(**SHAPE)), num_attention_heads=32, num_key_value_heads=4, experts=128, expert_size=768
)


@pytest.mark.parametrize(
    ("tp", "said"),
    [
        (3, "num_attention_heads=32 cannot be divided"),
        (32, "moe_intermediate_size=768|intermediate_size=48"),
        (8, "from device 1 on there are 7 of the 8 GPUs"),
    ],
)
def test_layers_that_cannot_be_divided_and_gpus_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, tp: int, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ValueError, match=rf"engine\.tp={tp}: .*({said})"):
        checks.check_parallel(tp, A3B, "cuda:1")
    for fine in (1, 2, 4):
        checks.check_parallel(fine, A3B, "cuda:1")


def test_training_processes_with_one_gpu_each_are_told_to_use_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match=r"engine\.tp=2: each of the 4 training processes .*lightning run serve"):
        checks.check_parallel(2, A3B, "cuda:0")


def test_a_plan_divides_weights_and_cache_but_not_what_every_rank_keeps() -> None:
    rollout = RolloutSize(requests=8, longest=100, block_size=4, free=80e9)
    options = {"page_tokens": 64, "kv_blocks": 100, "kv_memory_share": 0.8, "max_batch_size": 8, "sleep": False}
    one, two, eight = (LMDeployEngine.memory({**options, "tp": tp}, A3B, rollout) for tp in (1, 2, 8))
    whole = 2 * A3B.vocab_size * A3B.hidden_size * (1 if A3B.tie_word_embeddings else 2)
    assert one.weights == 2.0 * A3B.parameters
    assert two.weights - whole == pytest.approx((one.weights - whole) / 2)
    assert (two.cache, eight.cache) == (one.cache / 2, one.cache / 4)  # four heads of keys: eight ranks keep each twice
