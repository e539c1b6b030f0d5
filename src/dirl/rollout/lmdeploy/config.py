"""Our options in LMDeploy's words; imported where LMDeploy is there."""

from collections.abc import Sequence

from lmdeploy.messages import GenerationConfig, PytorchEngineConfig


def engine_config(
    block_size: int,
    dtype: str,
    cuda_graphs: bool,
    max_batch_size: int,
    kv_memory_share: float,
    kv_blocks: int,
    page_tokens: int,
    prefill_tokens: int,
    tp: int,
) -> PytorchEngineConfig:
    """LMDeploy's config for the options of `LMDeployEngine`; weights come later."""
    return PytorchEngineConfig(
        tp=tp,
        dtype=dtype,
        max_batch_size=max_batch_size,
        cache_max_entry_count=kv_memory_share,
        num_gpu_blocks=kv_blocks,
        block_size=page_tokens,
        max_prefill_token_num=prefill_tokens,
        eager_mode=not cuda_graphs,
        dllm_block_length=block_size,
        distributed_executor_backend="uni" if tp == 1 else "mp",  # not LMDeploy's own: see `parallel_executor`
        empty_init=True,
        enable_metrics=False,
    )


def generation_config(max_response_tokens: int, stop_tokens: Sequence[int], seed: int) -> GenerationConfig:
    """The settings of one request. Drawing is ours: LMDeploy need not prepare its own."""
    return GenerationConfig(
        max_new_tokens=max_response_tokens,
        stop_token_ids=list(stop_tokens),
        random_seed=seed,
        top_k=1,
        top_p=1.0,
        temperature=1.0,
    )
