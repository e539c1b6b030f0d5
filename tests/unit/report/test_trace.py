"""Steps and tokens of one answer as they are shown."""

import pytest
from tests.unit.report.answers import ANSWER

from dirl.report.trace import denoising_steps, visible


def test_steps_are_the_forwards_in_order_and_know_what_they_committed():
    steps, committed_by = denoising_steps(ANSWER.step_map, block_size=4, first_block_offset=1)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1)]
    assert committed_by == [1, 0, 0, 2, 3, 4, 4, 5, 5, 5, 5]


def test_a_prompt_of_whole_blocks_leaves_whole_blocks():
    assert denoising_steps([1, 1, 2, 2], block_size=2, first_block_offset=0) == ([(0, 1), (1, 1), (1, 2)], [0, 0, 2, 2])


def test_an_offset_of_a_whole_block_is_refused():
    with pytest.raises(ValueError, match=r"first_block_offset=4 is not within 0\.\.3"):
        denoising_steps([1], block_size=4, first_block_offset=4)


@pytest.mark.parametrize(
    ("token", "shown"),
    [("a", "a"), (" the", "␣the"), ("\n\n", "↵↵"), ("<|im_end|>", "⊣"), ("<", "<"), ("internationally", "interna…")],
)
def test_tokens_are_shown_in_few_printable_characters(token, shown):
    assert visible(token) == shown
