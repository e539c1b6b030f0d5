"""Exported folders in a process that has transformers (4.57 or newer) and not this package.

python tests/plain_transformers.py INPUT OUTPUT: INPUT is a torch file {name of a model: {"folder", "ids", "text",
"attention"}}, OUTPUT gets what was seen of each.
"""

import sys

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@torch.no_grad()
def main(given: str, out: str) -> None:
    seen = {}
    for name, case in torch.load(given).items():
        tokenizer = AutoTokenizer.from_pretrained(case["folder"], trust_remote_code=True)
        model, loading = AutoModelForCausalLM.from_pretrained(
            case["folder"],
            trust_remote_code=True,
            dtype=torch.float32,
            attn_implementation=case["attention"],
            output_loading_info=True,
        )
        assert not loading["missing_keys"], loading
        tokens = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "1+2="}], add_generation_prompt=True, tokenize=False
        )
        model.eval()
        seen[name] = {
            "transformers": transformers.__version__,
            "class": type(model).__name__,
            "tokens": tokens,
            "text": tokenizer.decode(tokens),
            "special": [tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id],
            "chat": chat,
            "generation": model.generation_config.eos_token_id,
            "whole": model(case["ids"][None]).logits[0],
            "padded": padded(model, case["ids"]),
            "cached": cached(model, case["ids"], model.config.block_size),
        }
    torch.save(seen, out)


def padded(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits of the sequence with five tokens of padding on its left, in a batch with a longer one."""
    row = torch.cat([torch.zeros(5, dtype=torch.long), ids])
    mask = (torch.arange(len(row)) >= 5).long()
    batch, masks = torch.stack([row, row.flip(0)]), torch.stack([mask, torch.ones_like(mask)])
    return model(batch, attention_mask=masks).logits[0, 5:]


def cached(model: torch.nn.Module, ids: Tensor, block: int) -> Tensor:
    """Logits block by block; each is first given as something else, which `store_kv=False` must not leave behind."""
    cache, logits = DynamicCache(), []
    for part in ids.split(block):
        model((part + 1) % 10 + torch.zeros_like(part)[None], past_key_values=cache, use_cache=True, store_kv=False)
        mask = torch.ones(1, len(part), cache.get_seq_length() + len(part))  # as SDAR's generate.py makes it
        logits.append(model(part[None], attention_mask=mask, past_key_values=cache, use_cache=True).logits[0])
    return torch.cat(logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
