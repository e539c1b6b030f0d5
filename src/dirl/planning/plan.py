"""The plan of a run: its tokens, FLOPs and memory, from the settings of its config and assumed lengths.

A step is what a user counts: in RL a rollout with all its updates, in SFT an optimizer step.
"""

from dataclasses import dataclass, replace
from typing import Literal

from dirl.planning.budget import largest_budget, peak
from dirl.planning.files import FileSizes, file_sizes
from dirl.planning.flops import Flops, Work, forward_flops, training_flops
from dirl.planning.hours import Hours, Rates, hours
from dirl.planning.memory import Moment, Parts, memory_by_moment
from dirl.planning.settings import Settings
from dirl.planning.setup import TrainingSetup, policy_bytes, reference_bytes, trained_bytes
from dirl.planning.workload import (
    GroupLoad,
    Lengths,
    SequenceLoad,
    decoding_work,
    group_load,
    response_load,
    rl_views,
    rows,
    sft_views,
)
from dirl.rollout.memory import EngineMemory, RolloutSize

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Numbers of a step are those of all devices together; memory is that of one device, in bytes."""

    settings: Settings
    lengths: Lengths
    sequence: SequenceLoad
    load: GroupLoad
    groups: int
    """Groups (RL) or conversations (SFT) of a step."""
    rows: int
    """Micro-batches of a device in an optimizer step."""
    flops: dict[str, Flops]
    """What a step computes, by purpose."""
    setup: TrainingSetup
    engine: EngineMemory | None
    moments: dict[Moment, Parts]
    largest_budget: int
    """The most `data.token_budget` with which the run fits; 0: none."""
    memory: float
    notes: tuple[str, ...]
    files: FileSizes
    hours: Hours | None
    """None: no utilisation is given."""

    @property
    def peak(self) -> tuple[Moment, float]:
        return peak(self.moments)

    @property
    def clean(self) -> Work:
        return self.load.clean * self.groups

    @property
    def noised(self) -> Work:
        return self.load.noised * self.groups

    @property
    def work(self) -> Work:
        """The work of one pass over the step's data."""
        return self.clean + self.noised


def make_plan(settings: Settings, lengths: Lengths, memory: float, reserve: float, rates: Rates | None = None) -> Plan:
    """Plan a run; of one through several block sizes, the plan is that of the size that needs the most memory.

    Args: memory, reserve: bytes of a device, and of it what no tensor takes; rates: for hours.
    """
    sizes = settings.block_sizes
    plans = [
        _plan(replace(settings, block_size=size), lengths, memory, reserve, rates) for size in dict.fromkeys(sizes)
    ]
    most = max(plans, key=lambda plan: plan.peak[1])
    if len(plans) == 1:
        return most
    said = f"data.block_schedule goes through the block sizes {sizes}: planned is that which needs the most memory"
    return replace(most, largest_budget=min(plan.largest_budget for plan in plans), notes=(said, *most.notes))


def _plan(settings: Settings, lengths: Lengths, memory: float, reserve: float, rates: Rates | None) -> Plan:
    data, stage = settings.data, settings.stage
    groups = data["prompts_per_rollout"] if stage == "rl" else data["global_batch_size"]
    sequence, load = _loads(settings, lengths)
    per_update = groups / settings.shares / (data["steps_per_rollout"] if stage == "rl" else 1)
    row_count = rows(load, per_update, data["token_budget"])
    setup = _setup(settings, load)
    engine = _engine(settings, setup, memory - reserve)
    largest = largest_budget(setup, engine, reserve, memory)
    flops = _flops(settings, lengths, sequence, load, groups)
    responses = lengths.response_tokens * groups * data.get("group_size", 0)
    return Plan(
        settings=settings,
        lengths=lengths,
        sequence=sequence,
        load=load,
        groups=groups,
        rows=row_count,
        flops=flops,
        setup=setup,
        engine=engine,
        moments=memory_by_moment(setup, engine, reserve),
        largest_budget=largest,
        memory=memory,
        notes=_notes(settings, setup, load, engine, largest),
        files=file_sizes(setup, settings.half_weights, settings.adapter_export),
        hours=None if rates is None else hours(flops, settings.devices, rates, responses, settings.steps),
    )


def _setup(settings: Settings, load: GroupLoad) -> TrainingSetup:
    return TrainingSetup(
        shape=settings.shape,
        strategy=settings.strategy,
        devices=settings.devices,
        mixed=settings.mixed,
        checkpointing=settings.checkpointing,
        tokens=max(settings.data["token_budget"], round(load.longest)),
        scored_share=load.work.scored / load.work.tokens,
        head_chunk=settings.model["head_chunk"],
        bucket_view=settings.bucket_view,
        reference=_reference(settings),
        offload_optimizer=bool(settings.model.get("offload_optimizer")),
        value=settings.value,
        adapters=settings.adapters,
        shard_size=settings.mesh.shards if settings.mesh is not None and settings.mesh.hybrid else None,
        tensor=1 if settings.mesh is None else settings.mesh.tensor,
        cpu_offload=settings.cpu_offload,
    )


def _loads(settings: Settings, lengths: Lengths) -> tuple[SequenceLoad, GroupLoad]:
    size, data = settings.block_size, settings.data
    if settings.stage == "rl":
        steps, scored = rl_views(lengths, size)
        part = settings.objective.subset.view_fraction
        views = settings.objective.planned_views(steps) * part
        scored *= settings.objective.planned_scorings() * part
    else:
        views, scored = sft_views(lengths, size, settings.noise)
    sequence = response_load(lengths, size, views, scored)
    if settings.stage == "sft":
        return sequence, group_load(sequence, 1, data["token_budget"], share_prompt=True)
    members = data["group_size"] * settings.objective.subset.trajectory_fraction
    return sequence, group_load(sequence, members, data["token_budget"], data["share_prompt"])


def _reference(settings: Settings) -> Literal["none", "device", "host"]:
    if not settings.kl or (settings.adapters is not None and settings.model.get("reference") is None):
        return "none"
    return "host" if settings.model.get("reference_on_host") else "device"


def _engine(settings: Settings, setup: TrainingSetup, room: float) -> EngineMemory | None:
    if settings.engine is None:
        return None
    data = settings.data
    size = RolloutSize(
        requests=-(-data["prompts_per_rollout"] // settings.devices) * data["group_size"],
        longest=data["max_prompt_tokens"] + settings.model["decoding"]["max_response_tokens"],
        block_size=settings.block_size,
        half_weights=settings.half_weights,
        free=room - (0.0 if setup.cpu_offload else policy_bytes(setup)),
    )
    engine, options = settings.engine
    return engine.memory(options, settings.shape, size)


def _flops(
    settings: Settings, lengths: Lengths, sequence: SequenceLoad, load: GroupLoad, groups: int
) -> dict[str, Flops]:
    """FLOPs of a step, by purpose."""
    work = load.work * groups
    passes = settings.data["passes"] if settings.stage == "rl" else 1
    adapters = None if settings.adapters is None else settings.adapters.parameters(settings.shape)
    training = training_flops(settings.shape, work * passes, settings.checkpointing, adapters)
    found = {"forward": training.forward, "backward": training.backward, "recomputed": training.recomputed}
    if settings.stage == "sft":
        return found
    scoring = forward_flops(settings.shape, work)
    if settings.updates > 1 and settings.objective.needs_old:
        found["old log-probs"] = scoring
    if settings.kl:
        found["reference log-probs"] = scoring
    if _sums_first(settings, sequence):
        found["sums of trajectories"] = scoring * passes
    if settings.value is not None:
        found |= _of_value(settings, replace(work, scored=0.0))
    decoding = decoding_work(lengths, settings.block_size) * settings.data["group_size"] + sequence.prompt
    found["rollout"] = forward_flops(settings.shape, decoding * groups)
    return found


def _of_value(settings: Settings, work: Work) -> dict[str, Flops]:
    """A head of one number is nothing beside the layers."""
    assert settings.value is not None
    training = training_flops(settings.value, work * settings.data["passes"], settings.checkpointing)
    learning = training.forward + training.backward + training.recomputed
    return {"old values": forward_flops(settings.value, work), "value: learning": learning}


def _sums_first(settings: Settings, sequence: SequenceLoad) -> bool:
    """Whether every row is scored once more before it is learned from: where responses are divided, or for totals."""
    objective = settings.objective
    moved = settings.updates > 1
    if objective is None or not (objective.needs_sums(moved) and objective.sums_need_scores(moved)):
        return False
    whole = sequence.prompt.tokens + sequence.response.tokens
    return objective.needs_totals or whole > settings.data["token_budget"]


def _notes(
    settings: Settings, setup: TrainingSetup, load: GroupLoad, engine: EngineMemory | None, largest: int
) -> tuple[str, ...]:
    budget, notes = settings.data["token_budget"], []
    if load.longest > budget:
        notes.append(
            f"rows of {load.longest:,.0f} tokens, over data.token_budget={budget:,}: one view with all that it attends "
            "to does not fit in it"
        )
    if 0 < largest < load.longest:
        notes.append(f"a row of {load.longest:,.0f} tokens does not fit: assume shorter responses, or free memory")
    if settings.adapters is not None:
        learn = settings.adapters.parameters(settings.shape) / 1e6
        base = "bf16" if settings.mixed else "fp32"
        reference = "; the reference is the policy with its adapters off" if settings.kl else ""
        notes.append(f"LoRA: {learn:,.1f} M parameters learn in fp32, the base is frozen in {base}{reference}")
    if settings.cpu_offload:
        each = (trained_bytes(setup) * 4 + reference_bytes(setup)) / GIB
        notes.append(
            f"host memory: {each:,.1f} GiB a process for weights, gradients and optimizer state, beside what it loads"
        )
    if settings.model.get("compile_layers"):
        notes.append("compile_layers keeps fewer activations than the eager layers that are counted here")
    if settings.objective is not None and settings.objective.likelihood == "trajectory":
        notes.append("likelihood: trajectory also takes the rejected positions to the head; they are not counted")
    if engine is not None:
        notes.append(engine.note)
    return tuple(notes)
