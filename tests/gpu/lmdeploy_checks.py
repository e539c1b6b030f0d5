"""What must hold of LMDeploy's engine on a device, each a function that measures, and raises `Broken` if it does not.

In bf16 two implementations of one forward differ by rounding, and where the two best tokens lie close to one another
another one wins; from there on a response goes its own way. So agreement is asked for in part, and responses to other
prompts (or other seeds, or the weights from before) say how much of it chance would give. In fp32, where LMDeploy's
scheduler runs around a model of transformers' on a CPU, everything must agree.
"""

import time
from collections.abc import Callable

import torch
from tests.gpu.bounds import Numbers, bounds, hold
from tests.gpu.engine_pair import Pair, Shape, agreement, by_chance, engine_pair, equal_tokens, nudge, request, spread

from dirl.rollout import LMDeployEngine
from dirl.types import Trajectory


def greedy_parity(
    shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int = 4, **settings: object
) -> Numbers:
    """Greedy responses are the torch engine's, and log-probs, of drawn tokens too, are those of the trainer."""
    limits = bounds(dtype)
    with engine_pair(shape, device, dtype, block_size, **settings) as pair:
        greedy, drawn = pair.decoding(temperature=0), pair.decoding(temperature=1)
        expected = list(pair.reference.generate(pair.requests(), greedy))
        made = list(pair.engine.generate(pair.requests(), greedy))
        samples = list(pair.engine.generate(pair.requests(), drawn))
        for trajectory in (*made, *samples):
            trajectory.check(pair.description.spec)
        numbers = agreement(made, expected, block_size) | {"chance": by_chance(expected)}
        numbers |= spread("trainer_greedy", pair.trainer_distances(made, greedy))
        numbers |= spread("trainer_drawn", pair.trainer_distances(samples, drawn))
    return hold(
        numbers,
        equal_tokens=numbers["equal_tokens"] >= max(limits.equal_tokens, numbers["chance"] + limits.margin),
        logprobs=numbers["logprob_mean"] <= limits.mismatch,
        trainer_greedy=numbers["trainer_greedy_mean"] <= limits.mismatch,
        trainer_drawn=numbers["trainer_drawn_mean"] <= 2 * limits.mismatch,  # less probable tokens have more to lose
    )


def cuda_graphs(shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int = 4) -> Numbers:
    """Greedy responses with graphs are those without; a graph pads its batch, so kernels may differ in bf16."""
    made: dict[bool, list[Trajectory]] = {}
    for graphs in (False, True):
        with engine_pair(shape, device, dtype, block_size, cuda_graphs=graphs) as pair:
            made[graphs] = list(pair.engine.generate(pair.requests(), pair.decoding(temperature=0)))
    numbers = agreement(made[True], made[False], block_size) | {"chance": by_chance(made[False])}
    limits = bounds(dtype)
    return hold(
        numbers,
        equal_tokens=numbers["equal_tokens"] >= max(limits.equal_tokens, numbers["chance"] + limits.margin),
        logprobs=numbers["logprob_mean"] <= limits.mismatch,
    )


def push(shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int = 4, **settings: object) -> Numbers:
    """After a push greedy responses are those of the new weights, though the GPU was still making these.

    The graphs that were captured before it are those that make them: weights are copied to where the old ones were.
    """
    limits = bounds(dtype)
    with engine_pair(shape, device, dtype, block_size, **settings) as pair:
        greedy = pair.decoding(temperature=0)
        before = {t.key: t for t in pair.engine.generate(pair.requests(), greedy)}
        if device.type == "cuda":
            torch.cuda._sleep(2_000_000_000)  # cycles, about a second, for which what follows waits
        nudge(pair.backbone, 0.5)
        graphs = _graphs(pair.engine)
        pair.update(pair.engine, 1)
        pair.update(pair.reference, 1)
        expected = list(pair.reference.generate(pair.requests(), greedy))
        made = list(pair.engine.generate(pair.requests(), greedy))
        numbers = agreement(made, expected, block_size)
        numbers["old_weights"] = equal_tokens([(t, before[t.key]) for t in made])
        versions = {t.policy_version for t in made}
        kept = graphs == _graphs(pair.engine)
        numbers |= _push_seconds(pair) | {"graphs": float(len(graphs))}
    return hold(
        numbers,
        equal_tokens=numbers["equal_tokens"] >= max(limits.equal_tokens, numbers["old_weights"] + limits.margin),
        logprobs=numbers["logprob_mean"] <= limits.mismatch,
        policy_version=versions == {1},
        graphs=kept and (len(graphs) > 0 or device.type != "cuda"),
    )


def _graphs(engine: LMDeployEngine) -> dict[object, int]:
    """The captured graphs by what they are for; there are none around a model on a CPU."""
    runners = getattr(engine.engine.executor.model_agent.patched_model, "_full_graph_runners", {})
    return {key: id(runner) for key, runner in runners.items()}


def _push_seconds(pair: Pair) -> Numbers:
    """Best of three: a push, and plain copies of the same tensors from the trainer's dtype to the engine's."""
    own = [p.detach() for p in pair.backbone.parameters()]
    copies = [torch.empty_like(p, dtype=pair.dtype) for p in own]

    def copy() -> None:
        for target, value in zip(copies, own, strict=True):
            target.copy_(value)

    push_s = min(_seconds(lambda: pair.update(pair.engine, 2), pair.device) for _ in range(3))
    copy_s = min(_seconds(copy, pair.device) for _ in range(3))
    return {"push_bytes": float(sum(p.nbytes for p in own)), "push_s": push_s, "copy_s": copy_s}


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def sleep_and_wake(shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int = 4) -> Numbers:
    """Asleep, the engine has given back 90 % of weights and cache; awake, it works as before, in no more memory."""
    pair = Pair(shape, device, dtype, block_size, sleep=True)
    numbers: Numbers = {}

    def read(moment: str) -> None:
        numbers.update({f"{name}_{moment}": float(value) for name, value in _memory(pair).items()})

    try:
        read("before")
        pair.set_up(pair.engine)
        read("set_up")
        rollouts = []
        for version, suffix in enumerate(("", "_again")):
            numbers[f"wake{suffix}_s"] = _seconds(lambda: _wake(pair, version), pair.device)  # noqa: B023 - called now
            rollouts.append(list(pair.engine.generate(pair.requests(), pair.decoding(temperature=0))))
            read(f"awake{suffix}")
            numbers[f"held{suffix}"] = float(_weight_bytes(pair.engine) + _cache_bytes(pair))
            numbers[f"sleep{suffix}_s"] = _seconds(pair.engine.sleep, pair.device)
            read(f"asleep{suffix}")
    finally:
        pair.engine.close()
    numbers |= agreement(rollouts[1], rollouts[0], block_size)
    return hold(
        numbers,
        equal_tokens=numbers["equal_tokens"] >= bounds(dtype).equal_tokens,
        was_held=numbers["allocated_awake"] - numbers["allocated_before"] >= 0.9 * numbers["held"] > 0,
        **{
            f"{name}{suffix}_given_back": numbers[f"{name}_awake{suffix}"] - numbers[f"{name}_asleep{suffix}"]
            >= 0.9 * numbers[f"held{suffix}"]
            for name in ("allocated", "reserved")
            for suffix in ("", "_again")
        },
        does_not_grow=numbers["allocated_awake_again"] <= 1.05 * numbers["allocated_awake"],
    )


def _wake(pair: Pair, policy_version: int) -> None:
    """Weights, cache and graphs, until the first response is there."""
    pair.update(pair.engine, policy_version)
    list(pair.engine.generate(pair.requests()[:1], pair.decoding(temperature=0)))


def _memory(pair: Pair) -> dict[str, int]:
    """Bytes; on a CPU, where nobody counts them, those of the engine's weights."""
    if pair.device.type != "cuda":
        held = _weight_bytes(pair.engine)
        return {"allocated": held, "reserved": held}
    _wait(pair.device)
    allocated, reserved = torch.cuda.memory_allocated(pair.device), torch.cuda.memory_reserved(pair.device)
    return {"allocated": allocated, "reserved": reserved, "free": torch.cuda.mem_get_info(pair.device)[0]}


def _weight_bytes(engine: LMDeployEngine) -> int:
    """Of the parameters that have a place in memory; tied ones are counted once."""
    if engine.engine is None:
        return 0
    parameters = engine.engine.executor.model_agent.patched_model.get_model().parameters()
    return sum({p.data_ptr(): p.nbytes for p in parameters if not p.is_meta}.values())


def _cache_bytes(pair: Pair) -> int:
    return pair.shape.cache_bytes(pair.dtype) if pair.device.type == "cuda" else 0


def groups(shape: Shape, device: torch.device, dtype: torch.dtype, block_size: int = 4, graphs: bool = True) -> Numbers:
    """Samples of a group differ, and seeds give the same ones again: in another order, and each alone."""
    size, prompts = 16, max(shape.requests // 16, 1)
    first, again, others = (
        [request(f"g{p}", i, shape.longest_prompt, run) for p in range(prompts) for i in range(size)]
        for run in (0, 0, 1)
    )
    with engine_pair(shape, device, dtype, block_size, cuda_graphs=graphs) as pair:
        decoding = pair.decoding(temperature=3)  # so flat that short responses differ, too
        samples = {t.key: t for t in pair.engine.generate(first, decoding)}
        repeated = list(pair.engine.generate(again[::-1], decoding))
        alone = [t for r in again[:: len(again) // 4] for t in pair.engine.generate([r], decoding)]
        different = list(pair.engine.generate(others, decoding))
    distinct = [len({t.response_ids for t in samples.values() if t.prompt_id == f"g{p}"}) for p in range(prompts)]
    shares = {
        name: equal_tokens([(t, samples[t.key]) for t in made])
        for name, made in (("repeated", repeated), ("alone", alone), ("other_seeds", different))
    }
    limits = bounds(dtype)
    wanted = max(limits.equal_tokens, shares["other_seeds"] + limits.margin)
    return hold(
        {"group_size": float(size), "distinct": float(min(distinct)), **shares},
        distinct=min(distinct) == size,
        repeated=shares["repeated"] >= wanted,
        alone=shares["alone"] >= wanted,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
