"""Packing: segments become flat rows of tokens, filled to a budget; nothing is padded.

`pack` spreads the responses of a segment over several rows where that fills them, and the views of a response where it
exceeds the budget.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from dirl.packing.division import parts_within, prompt_and_responses
from dirl.packing.filling import fill_rows
from dirl.packing.segments import Segment, clean_segment, concatenate
from dirl.types import ModelSpec, PackedBatch


def pack(segments: Iterable[Segment], token_budget: int) -> list[PackedBatch]:
    """Fill rows of at most `token_budget` tokens; see `dirl.packing.filling` and `dirl.packing.division`.

    Responses of one segment that come to lie in different rows get a copy of the prompt in each, and parts of a
    response a copy of the clean blocks before them. A row exceeds the budget only where one view with all that it
    attends to does; a segment without tokens is in no row.
    """
    groups: list[tuple[Segment, list[Segment]]] = []
    whole: list[Segment] = []  # all that shares no prompt is as one group without a prompt
    for segment in segments:
        if not len(segment):
            continue
        prompt, responses = prompt_and_responses(segment)
        if len(responses) > 1:
            groups.append((prompt, _parts(responses, token_budget, len(prompt))))
        else:
            whole += parts_within(segment, token_budget)
    lengths = [(len(prompt), [len(r) for r in responses]) for prompt, responses in groups]
    rows = []
    for row in fill_rows([*lengths, (0, [len(segment) for segment in whole])], token_budget):
        joined: list[Segment] = []
        for number, chosen in row:
            if number == len(groups):
                joined += [whole[i] for i in chosen]
            else:
                prompt, responses = groups[number]
                joined.append(concatenate([prompt, *(responses[i] for i in chosen)]))
        rows.append(join(joined))
    return rows


def fill_rate(batches: Sequence[PackedBatch], token_budget: int) -> float:
    """Tokens over the room for them, in 0..1. A row over the budget is full; without rows it is 0."""
    room = sum(max(len(batch), token_budget) for batch in batches)
    return sum(len(batch) for batch in batches) / room if room else 0.0


def join(segments: Sequence[Segment]) -> PackedBatch:
    """One flat row; every segment becomes a group of its own."""
    merged = concatenate(segments)
    groups = np.repeat(np.arange(len(segments)), [len(s) for s in segments])
    tensors = {name: torch.from_numpy(value) for name, value in vars(merged).items()}
    return PackedBatch(**tensors, group_ids=torch.from_numpy(groups))


def empty_batch(spec: ModelSpec) -> PackedBatch:
    """One block without targets: what a rank computes when the others have more micro-batches."""
    ids = np.full((1, spec.block_size), spec.pad_token_id, dtype=np.int64)
    return join([clean_segment(ids, 0, branch=0)])


def _parts(responses: list[Segment], token_budget: int, prompt_tokens: int) -> list[Segment]:
    """The responses, or their parts where one exceeds the budget, each in a branch of its own."""
    parts = (part for response in responses for part in parts_within(response, token_budget, prompt_tokens))
    return [
        dataclasses.replace(part, branch_ids=np.full_like(part.branch_ids, branch))
        for branch, part in enumerate(parts, 1)
    ]
