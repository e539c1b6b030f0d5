"""The question in what is asked."""

import pytest
from omegaconf import OmegaConf

from dirl.reading.prompt_template import check_template, fill

BOXED = "{question}\nPlease reason step by step, and put your final answer within $\\boxed{}$."


def test_all_but_the_place_stands_as_it_is() -> None:
    assert fill(BOXED, "1+{x}?") == "1+{x}?\nPlease reason step by step, and put your final answer within $\\boxed{}$."
    assert fill(None, "q") == "q"


def test_of_messages_the_last_question_is_filled_in() -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    filled = fill("<{question}>", messages)
    assert [message["content"] for message in filled] == ["system", "user", "assistant", "<user>"]
    assert messages[-1]["content"] == "user"


def test_a_template_without_a_place_is_refused() -> None:
    check_template(None)
    with pytest.raises(ValueError, match=r"prompt_template='Think.' has no \{question\}"):
        check_template("Think.")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("configs/rl.yaml", "data.init_args.prompt_template"),
        ("configs/recipe/dirl_8b_rl.yaml", "data.init_args.prompt_template"),
        ("configs/recipe/sdar_8b_rl_one_gpu.yaml", "data.init_args.prompt_template"),
        ("configs/eval.yaml", "data.prompt_template"),
    ],
)
def test_recipes_ask_for_what_their_reward_looks_for(path: str, key: str) -> None:
    assert OmegaConf.select(OmegaConf.load(path), key) == BOXED
