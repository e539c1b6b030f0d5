"""The one entrance to a rollout: prompts in, trajectories out, whoever asks and whatever the engine."""

from collections.abc import Iterable, Iterator

from dirl.rollout.engine import RolloutEngine
from dirl.seeds import derived_seed
from dirl.types import DecodingParams, GenerationRequest, Prompt, Trajectory


def requests_for(prompts: Iterable[Prompt], samples: int, seed: tuple[int, ...]) -> list[GenerationRequest]:
    """`samples` requests a prompt; a request's seed depends on `seed`, its prompt and its number alone."""
    return [
        GenerationRequest(p.prompt_id, i, p.input_ids, derived_seed(*seed, p.prompt_id, i))
        for p in prompts
        for i in range(samples)
    ]


def sample(
    engine: RolloutEngine, prompts: Iterable[Prompt], samples: int, decoding: DecodingParams, seed: tuple[int, ...]
) -> Iterator[Trajectory]:
    """`samples` trajectories a prompt, in the order in which they finish.

    Raises:
        RuntimeError: the engine has answered what was not asked, twice, or not at all.
    """
    requests = requests_for(prompts, samples, seed)
    open_requests = {(request.prompt_id, request.sample_index) for request in requests}
    for trajectory in engine.generate(requests, decoding):
        if trajectory.key not in open_requests:
            raise RuntimeError(
                f"{type(engine).__name__} answered {trajectory.prompt_id}#{trajectory.sample_index}, which it was not "
                "asked, or has answered already"
            )
        open_requests.remove(trajectory.key)
        yield trajectory
    if open_requests:
        prompt_id, number = min(open_requests)
        raise RuntimeError(
            f"{type(engine).__name__} ended with {len(open_requests)} of {len(requests)} requests unanswered, the "
            f"first: {prompt_id}#{number}"
        )
