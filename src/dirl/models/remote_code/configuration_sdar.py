"""SDAR: Qwen3's config with `block_size` and `mask_token_id` under a model type of its own.

For transformers 4.57 and newer, with `trust_remote_code=True`; dirl itself does without.
"""

from transformers import Qwen3Config, Qwen3MoeConfig


class SDARConfig(Qwen3Config):
    model_type = "sdar"


class SDARMoeConfig(Qwen3MoeConfig):
    model_type = "sdar_moe"
