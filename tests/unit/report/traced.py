"""Trajectories for pages: a small file with all there can be, hostile ones, and as many as one likes."""

import numpy as np

from dirl.report.trace_data import Row, told_texts, trace_data
from dirl.report.trace_page import trace_page
from dirl.trajectory_files import Annotation
from dirl.types import Trajectory

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "a\u2028b\u2029",
    "\u202egnp.exe\u202c",
    "<!-- <script>",
    "]]>{{code}}{{data}}",
    "\x00\x1b[31m",
    "&lt;b&gt;&amp;",
)
"""Texts of tokens that a page must show and not obey."""


def row(prompt_id: str = "q", sample_index: int = 0, **more) -> Row:
    """Two prompt tokens, one block that they share with the response and another, B = 4; `é` in two tokens."""
    texts = ("p", "?", "caf", "<0xC3>", "<0xA9>", "\n", "<|im_end|>", " x")
    fields = dict(
        prompt_id=prompt_id,
        sample_index=sample_index,
        prompt_ids=(10, 11),
        response_ids=(1, 2, 3, 4, 5, 6),
        response_length=5,
        step_map=(1, 2, 2, 1, 3, 1),
        behaviour_logprobs=(-0.25, -0.00004, -2.0, -0.5, 0.0, -1.0),
        finish_reason="stop",
        policy_version=3,
        reward=1.0,
        rewards={"accuracy": 1.0},
        correct=True,
        advantage=1.0,
    )
    return Trajectory(**(fields | more)), Annotation("What?", "café\n", "yes", texts, 4)


def hostile_rows() -> list[Row]:
    """The same text in ids, names, questions and truths."""
    count = len(HOSTILE)
    trajectory = Trajectory(
        prompt_id="</script><b>\u202eid",
        sample_index=0,
        prompt_ids=(),
        response_ids=tuple(range(count)),
        response_length=count,
        step_map=(1, 2, 3, 4) * (count // 4),
        behaviour_logprobs=tuple(-k / 10 for k in range(count)),
        finish_reason="length",
        policy_version=0,
        reward=1.0,
        rewards={"__proto__": 1.0, "<b>bold</b>": -2.0, "toString": 0.5},
        correct=True,
        advantage=0.5,
    )
    words = Annotation("<script>document.title='owned'</script>", "", "</textarea><svg onload=alert(1)>", HOSTILE, 4)
    return [(trajectory, words)]


def page_of(rows: list[Row], title: str = "made.jsonl") -> str:
    size = rows[0][1].block_size or 4
    data = trace_data(rows, size, told_texts(rows))
    return trace_page(data | {"texts_from": "the file", "block_size_guessed": False}, title)


def many_rows(prompts: int, group: int, tokens: int, block_size: int = 16) -> list[Row]:
    """Responses of exactly so many tokens, of 200 different ones, four a denoising step; a prompt is a block."""
    rng = np.random.default_rng(0)
    texts = [f" w{k}" for k in range(200)]
    blocks = -(-tokens // block_size)
    steps = tuple(k // 4 + 1 for k in range(block_size)) * blocks

    def one(prompt: int, index: int) -> Row:
        length = blocks * block_size
        ids = (0,) * block_size + tuple(rng.integers(0, 200, length).tolist())
        trajectory = Trajectory(
            prompt_id=f"prompt-{prompt}",
            sample_index=index,
            prompt_ids=ids[:block_size],
            response_ids=ids[block_size:],
            response_length=tokens,
            step_map=steps,
            behaviour_logprobs=tuple((-rng.exponential(0.3, length)).tolist()),
            finish_reason="length",
            policy_version=1,
            reward=float(index % 2),
            rewards={"accuracy": float(index % 2), "length": -tokens / 1000},
            correct=index % 2 == 1,
            advantage=float(index % 2) - 0.5,
        )
        return trajectory, Annotation(f"Question {prompt}?", None, "1", tuple(texts[i] for i in ids), block_size)

    return [one(prompt, index) for prompt in range(prompts) for index in range(group)]
