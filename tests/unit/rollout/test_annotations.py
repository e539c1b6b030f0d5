"""What stands beside the ids of a trajectory in a file."""

import pytest
from dirl.callbacks import Rollout
from tests.tiny import TinyModel, prompt, sample_groups

from dirl.rollout.annotations import annotations
from dirl.types import DecodingParams, Prompt


def test_a_trajectory_is_told_with_its_prompt_its_text_and_that_of_every_token() -> None:
    description = TinyModel().describe()
    asked = [Prompt("0", prompt(5), "0+1=", "1", {"more": 2}), Prompt("1", prompt(6), "1+1=", "2")]
    annotate = annotations(asked, description)
    groups = sample_groups(TinyModel(), [p.input_ids for p in asked], 3, DecodingParams(max_response_tokens=12))
    for trajectory in (t for group in groups for t in group):
        words, own = annotate(trajectory), asked[int(trajectory.prompt_id)]
        assert (words.question, words.ground_truth, words.block_size) == (own.question, own.ground_truth, 4)
        tokens = words.token_texts[len(own.input_ids) :]
        text = "".join(tokens[: trajectory.response_length - (trajectory.finish_reason == "stop")])
        assert words.response == text, "without the stop token, and without what was decoded behind it"
        assert "".join(words.token_texts[: len(own.input_ids)]) == description.tokenizer.decode(own.input_ids)


def test_texts_are_not_asked_for_where_no_trajectories_are_written() -> None:
    with pytest.raises(ValueError, match=r"rollout\.save_texts=true: no trajectories are written; name rollout"):
        Rollout(save_texts=True)
