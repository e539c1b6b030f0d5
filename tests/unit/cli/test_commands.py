"""Options of the commands beside training."""

import pytest

from dirl.cli.commands import PromptData


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_leaves_something(limit: int) -> None:
    with pytest.raises(ValueError, match=f"data.limit={limit}: use at least 1, or null"):
        PromptData("x.jsonl", limit=limit)


def test_a_prompt_has_room() -> None:
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens=0: use at least 1"):
        PromptData("x.jsonl", max_prompt_tokens=0)
