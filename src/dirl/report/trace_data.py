"""Trajectories as the data of a page: columns, each token's text once, numbers as short as they may be."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dirl.report.trace import is_special
from dirl.trajectory_files import Annotation
from dirl.types import ModelSpec, Trajectory

Row = tuple[Trajectory, Annotation]
COLUMNS = ("sample_index", "response_length", "finish_reason", "policy_version", "reward", "advantage", "correct")
"""Fields that the page has as they are."""
LOGPROB_UNIT = 1e-4
"""Nats: log-probs are whole numbers of it."""
DIGITS = 6
"""Significant ones of rewards and advantages."""


def trace_data(
    rows: Sequence[Row], block_size: int, texts: Mapping[int, str], special: Collection[int] | None = None
) -> dict[str, Any]:
    """What the page reads: plain values, a list for each field with an entry for each trajectory.

    Args:
        texts: of tokens, by id; one that is not in it is shown by its id.
        special: ids that stand for no text; None: those whose text looks like `<|im_end|>`.
    """
    check_rows(rows, block_size)
    trajectories = [trajectory for trajectory, _ in rows]
    counts = Counter(i for t in trajectories for ids in (t.prompt_ids, t.response_ids) for i in ids)
    place = {index: k for k, (index, _) in enumerate(counts.most_common())}  # those of frequent tokens are short
    if special is None:
        special = [index for index in place if is_special(texts.get(index, ""))]
    prompts, prompt_of = _prompts(rows, place)
    names = sorted({name for t in trajectories for name in t.rewards})
    return {
        "block_size": block_size,
        "logprob_unit": LOGPROB_UNIT,
        "ids": list(place),
        "texts": [texts.get(index) for index in place],
        "special": sorted(place[index] for index in special if index in place),
        "prompts": prompts,
        "trajectories": {"prompt": prompt_of}
        | {name: [_short(getattr(t, name)) for t in trajectories] for name in COLUMNS},
        "rewards": {name: [_short(t.rewards.get(name)) for t in trajectories] for name in names},
        "response_ids": [[place[i] for i in t.response_ids] for t in trajectories],
        "step_maps": [t.step_map for t in trajectories],
        "logprobs": [[round(value / LOGPROB_UNIT) for value in t.behaviour_logprobs] for t in trajectories],
    }


def check_rows(rows: Iterable[Row], block_size: int) -> None:
    """Raise ValueError for a trajectory that cannot be of this block size, or contradicts itself."""
    for trajectory, words in rows:
        most = 1 + max((*trajectory.prompt_ids, *trajectory.response_ids), default=0)
        trajectory.check(ModelSpec(block_size, mask_token_id=-1, stop_token_ids=(), pad_token_id=-1, vocab_size=most))
        if words.block_size not in (None, block_size):
            raise ValueError(
                f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}: its file says "
                f"block_size={words.block_size}, not {block_size}; leave out the other, or use the model that made it"
            )


def told_texts(rows: Iterable[Row]) -> dict[int, str]:
    """Texts of tokens that the file itself has; ValueError where it contradicts itself."""
    found: dict[int, str] = {}
    for trajectory, words in rows:
        if words.token_texts is None:
            continue
        who = f"trajectory {trajectory.prompt_id}#{trajectory.sample_index}"
        ids = (*trajectory.prompt_ids, *trajectory.response_ids)
        if len(ids) != len(words.token_texts):
            raise ValueError(f"{who}: token_texts has {len(words.token_texts)} entries for {len(ids)} tokens")
        for index, text in zip(ids, words.token_texts, strict=True):
            if found.setdefault(index, text) != text:
                raise ValueError(
                    f"{who}: token {index} is {text!r} here and {found[index]!r} before: the file holds trajectories "
                    "of two tokenizers; make a page of each"
                )
    return found


def fitting_block_size(trajectories: Sequence[Trajectory]) -> int:
    """The smallest B by which every block has denoising steps 1, 2, ... without a gap; ValueError if there is none.

    A power of two comes before others, as block sizes are.
    """
    whole = math.gcd(*(len(t.prompt_ids) + len(t.response_ids) for t in trajectories))
    divisors = [size for size in range(1, whole + 1) if whole % size == 0]
    sizes = sorted(divisors, key=lambda size: (size & (size - 1) != 0, size))
    found = next((size for size in sizes if all(_fits(t, size) for t in trajectories)), None)
    if found is None:
        raise ValueError(
            "no block size fits the step maps of all trajectories: name the one that they were made with by block_size"
        )
    return found


def _fits(trajectory: Trajectory, size: int) -> bool:
    head = -len(trajectory.prompt_ids) % size or size
    starts = [0, *range(head, len(trajectory.step_map), size)]
    blocks = (set(trajectory.step_map[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True))
    return all(max(steps) == len(steps) and min(steps) == 1 for steps in blocks)


def _prompts(rows: Iterable[Row], place: Mapping[int, int]) -> tuple[list[dict[str, Any]], list[int]]:
    """Each prompt once, with what any of its trajectories says of it, and the number of that of each trajectory."""
    prompts: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    prompt_of = []
    for trajectory, words in rows:
        new = {"number": len(prompts), "question": None, "ground_truth": None}
        prompt = prompts.setdefault((trajectory.prompt_id, trajectory.prompt_ids), new)
        for name in ("question", "ground_truth"):
            prompt[name] = getattr(words, name) if prompt[name] is None else prompt[name]
        prompt_of.append(prompt["number"])
    made = [
        {
            "id": name,
            "tokens": [place[i] for i in ids],
            "question": said["question"],
            "ground_truth": said["ground_truth"],
        }
        for (name, ids), said in prompts.items()
    ]
    return made, prompt_of


def _short(value: Any) -> Any:
    """A number without digits that nobody reads."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
