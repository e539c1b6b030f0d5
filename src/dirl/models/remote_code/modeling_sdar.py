"""SDAR: Qwen3 under a block-causal mask. A position sees its whole block and all blocks before it.

Logits are not shifted: those at position i are of token i. To denoise a block, give it with mask tokens where its
tokens are not known yet, all blocks before it as input or in `past_key_values`, and `store_kv=False` until it is done.
"""

import torch
from transformers import Qwen3ForCausalLM, Qwen3MoeForCausalLM

from .configuration_sdar import SDARConfig, SDARMoeConfig

try:  # transformers 5 keeps the experts of a layer in one tensor, files hold them one by one
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
except ImportError:
    pass
else:
    _experts = get_checkpoint_conversion_mapping("qwen3_moe")
    register_checkpoint_conversion_mapping(SDARMoeConfig.model_type, _experts, overwrite=True)


class BlockCausal:
    """What SDAR changes of Qwen3's forward."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        store_kv=True,
        **kwargs,
    ):
        """As of Qwen3, with these differences.

        Args:
            attention_mask: [B, P + T] with 0 for padding, where P tokens are in the cache; or what each of T queries
                sees, [B, T, P + T] or [B, 1, T, P + T], 0 or False for what it does not.
            position_ids: [B, T] in the sequence, from which the blocks follow; made from the mask if left out.
            store_kv: False leaves `past_key_values` as it was.
        """
        if labels is not None:
            raise ValueError("labels: a causal loss is not SDAR's; compute a loss on masked positions from the logits")
        if "flash" in self.config._attn_implementation:
            raise ValueError(f"attn_implementation={self.config._attn_implementation!r}: use sdpa or eager")
        given = input_ids if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[0], past + given.shape[1], dtype=torch.bool, device=given.device)
        seen = attention_mask.bool()
        if seen.dim() == 2:
            keys = (seen.cumsum(-1) - 1).clamp(min=0)
            if position_ids is None:
                position_ids = keys[:, past:]
            keys = torch.cat([keys[:, :past], position_ids.expand(len(keys), -1)], 1) // self.config.block_size
            seen = seen[:, None] & (keys[:, None] <= keys[:, past:, None])
        if seen.dim() == 3:
            seen = seen[:, None]
        # additive, and finite: rows of padding see nothing
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=given.device)
        mask = mask.masked_fill(~seen, torch.finfo(self.dtype).min)
        output = super().forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if past_key_values is not None and not store_kv:
            past_key_values.crop(-given.shape[1])
        return output

    def generate(self, *args, **kwargs):
        raise NotImplementedError(
            "SDAR does not write from left to right: generate with LMDeploy, `dirl rollout` or SDAR's generate.py"
        )


class SDARForCausalLM(BlockCausal, Qwen3ForCausalLM):
    config_class = SDARConfig


class SDARMoeForCausalLM(BlockCausal, Qwen3MoeForCausalLM):
    config_class = SDARMoeConfig
