"""A toy that predicts the next token: transformers' own Qwen3 and loss, on solutions of the task that others learn."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from benchmarks.adapt.cases import SHAPE, Scale, held_out
from dirl.finite import dumps
from dirl.models.special_tokens import stop_token_ids
from dirl.models.tokenizer import new_tokenizer
from dirl.packing.pieces import Encoded
from dirl.reading.chat import encode_turns
from dirl.tasks import Countdown

OTHER_TEXTS = 1000
"""Added to a run's seed for the texts that its autoregressive model has read."""
IGNORED = -100


def made(root: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """What is known of the model in `root/autoregressive-seedN/model`, which is trained if it is not there yet."""
    folder = root / f"autoregressive-seed{seed}"
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        result = train(folder / "model", scale, seed)
        done.write_text(dumps(result, str(done), indent=1), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))


def train(folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    started = time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(Countdown.characters(), mask=False)
    texts, others = of_task(tokenizer, scale, seed)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=scale.lr, weight_decay=0.01)
    read = 0
    for step in range(scale.ar_steps):
        batch = texts[step * scale.batch : (step + 1) * scale.batch]
        read += sum(len(text.input_ids) for text in batch)
        for group in optimizer.param_groups:
            group["lr"] = scale.lr * rate(step, scale.ar_steps)
        model(**padded(batch, tokenizer.pad_token_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lost = likelihood(model, others, tokenizer.pad_token_id)
    return {"seed": seed, "tokens": read, "processor_s": time.process_time() - started, **lost}


def of_task(tokenizer: PreTrainedTokenizerBase, scale: Scale, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """What it reads, without a question of the held-out ones, and these."""
    others = held_out(seed)
    asked = {row["messages"][0]["content"] for row in others}
    count = scale.ar_steps * scale.batch
    own: list[Any] = Countdown(seed=OTHER_TEXTS + seed, solutions=2 * count).conversations("train")
    wanted = [row for row in own if row["messages"][0]["content"] not in asked][:count]
    assert len(wanted) == count, "the held-out questions are few among all"
    return [encoded(tokenizer, row) for row in wanted], [encoded(tokenizer, row) for row in others]


def encoded(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Encoded:
    (example,) = encode_turns(tokenizer, row["messages"], stop_token_ids(tokenizer))
    return example


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **SHAPE, **ids))


def rate(step: int, steps: int, warm_up: int = 50) -> float:
    """As the other runs have it: up in a line, down by a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))) / 2


def padded(batch: Sequence[Encoded], pad: int, responses_alone: bool = False) -> dict[str, torch.Tensor]:
    """Every token is learned, as in pre-training."""
    longest = max(len(text.input_ids) for text in batch)
    inputs = torch.full((len(batch), longest), pad)
    labels = torch.full_like(inputs, IGNORED)
    for row, text in enumerate(batch):
        ids = torch.tensor(text.input_ids)
        inputs[row, : len(ids)] = ids
        labels[row, : len(ids)] = torch.where(torch.tensor(text.loss_mask), ids, IGNORED) if responses_alone else ids
    return {"input_ids": inputs, "labels": labels}


@torch.no_grad()
def likelihood(model: Qwen3ForCausalLM, texts: Sequence[Encoded], pad: int) -> dict[str, float]:
    """-log p of the responses by next-token prediction, in nats, and how many tokens they have."""
    total, count = 0.0, 0
    for start in range(0, len(texts), 64):
        batch = padded(texts[start : start + 64], pad, responses_alone=True)
        scored = int((batch["labels"] != IGNORED).sum())
        total += float(model.eval()(**batch).loss) * scored
        count += scored
    return {"response_nll": total, "response_tokens": count}
