"""What stands beside the ids in a file of trajectories: question, truth, and the response in words."""

from collections.abc import Callable, Sequence

from dirl.models import ModelDescription
from dirl.models.token_texts import token_texts
from dirl.rollout.response import response_text
from dirl.trajectory_files import Annotation
from dirl.types import Prompt, Trajectory


def annotations(prompts: Sequence[Prompt], description: ModelDescription) -> Callable[[Trajectory], Annotation]:
    """What `write_trajectories` shall write beside a trajectory of one of these prompts."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    tokenizer, block_size = description.tokenizer, description.spec.block_size
    known: dict[int, str] = {}

    def annotate(trajectory: Trajectory) -> Annotation:
        prompt, ids = by_id[trajectory.prompt_id], (*trajectory.prompt_ids, *trajectory.response_ids)
        if new := set(ids) - known.keys():
            known.update(token_texts(tokenizer, new))
        return Annotation(
            question=prompt.question,
            response=response_text(trajectory, tokenizer),
            ground_truth=prompt.ground_truth,
            token_texts=tuple(known[i] for i in ids),
            block_size=block_size,
        )

    return annotate
