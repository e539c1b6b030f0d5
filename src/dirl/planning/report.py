"""A plan on the terminal: what is assumed, memory by part and moment, tokens, FLOPs."""

from rich.console import Console
from rich.table import Table

from dirl.planning.memory import MOMENTS, TILE, Part
from dirl.planning.plan import GIB, Plan
from dirl.planning.settings import Settings


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """All tables; memory in GiB of one device, tokens and FLOPs of a step on all devices."""
    console = console or Console()
    console.print(*_heading(plan), sep="\n", highlight=False)
    console.print(_memory(plan))
    console.print(*_verdict(plan), sep="\n", highlight=False)
    console.print(_tokens(plan), _flops(plan))
    console.print(*_files(plan), *_hours(plan), sep="\n", highlight=False)
    for note in plan.notes:
        console.print(f"- {note}", highlight=False)


def _heading(plan: Plan) -> list[str]:
    s, lengths = plan.settings, plan.lengths
    what = {"rl": "a step is a rollout with its updates", "sft": "a step is an optimizer step"}[s.stage]
    strategy = _strategy(s)
    assumed = f"assumed: {lengths.prompt_tokens:,} prompt tokens, {lengths.response_tokens:,} response tokens"
    if s.stage == "rl":
        assumed += f", {lengths.tokens_per_step:g} tokens per denoising step"
    return [
        f"{s.stage.upper()} of {s.shape.parameters / 1e9:.2f} B parameters, block size {s.block_size}; {s.devices} "
        f"devices, {strategy}, {'bf16-mixed' if s.mixed else '32-true'}, activation checkpointing "
        f"{s.checkpointing}; {what}",
        f"{assumed}  (--prompt_tokens, --response_tokens, --tokens_per_step)",
    ]


def _strategy(settings: Settings) -> str:
    mesh, name = settings.mesh, {"single": "single device", "ddp": "DDP", "fsdp2": "FSDP2"}[settings.strategy]
    if mesh is not None and mesh.hybrid:
        name += f" over {mesh.shards}, {mesh.replicas} copies"
    if mesh is not None and mesh.tensor > 1:
        name += f" over {mesh.shards} x tensor parallel over {mesh.tensor}"
    return name + (" with CPU offload" if settings.cpu_offload else "")


def _files(plan: Plan) -> list[str]:
    found = plan.files
    most = f", {_gib(found.per_process)} GiB of each process" if found.per_process < found.checkpoint else ""
    rollout = "; in the middle of a rollout's updates its rows come on top" if plan.settings.stage == "rl" else ""
    return [
        f"a checkpoint: {_gib(found.checkpoint)} GiB (weights {_gib(found.weights)}, optimizer "
        f"{_gib(found.optimizer)}{most}){rollout}; an export: {_gib(found.export)} GiB"
    ]


def _hours(plan: Plan) -> list[str]:
    """Print the hours, or nothing where no utilisation is given."""
    found = plan.hours
    if found is None:
        return ["hours: give --utilisation (and, for rollouts, --rollout_tokens_per_s)"]
    parts = f"{found.training_s:,.1f} s of training"
    if found.rollout_s is not None:
        parts += f" and {found.rollout_s:,.1f} s of rollout"
    without = ", rollouts left out (--rollout_tokens_per_s)" if "rollout" in plan.flops and not found.rollout_s else ""
    if found.total is None:
        return [f"a step: {parts}{without}; the run: set trainer.max_steps, an epoch is as long as its data"]
    return [f"a step: {parts}{without}; {found.steps:,} steps: {found.total:,.1f} hours"]


def _memory(plan: Plan) -> Table:
    table = Table(title=f"Memory of a device, GiB (rows of {plan.setup.tokens:,} tokens)")
    table.add_column("part", no_wrap=True)
    highest = plan.peak[0]
    for moment in plan.moments:
        table.add_column(MOMENTS[moment], justify="right", style="bold" if moment == highest else None)
    for part in Part.__args__:
        values = [parts.get(part, 0.0) for parts in plan.moments.values()]
        if any(values):
            table.add_row(part, *(_gib(value) for value in values), end_section=part == Part.__args__[-1])
    table.add_row("sum", *(_gib(sum(parts.values())) for parts in plan.moments.values()))
    return table


def _verdict(plan: Plan) -> list[str]:
    moment, used = plan.peak
    fits = "fits" if used <= plan.memory else "does not fit"
    lines = [f"peak {_gib(used)} GiB ({MOMENTS[moment]}): {fits} into {_gib(plan.memory)} GiB"]
    if plan.largest_budget:
        lines.append(f"largest data.token_budget that fits: {plan.largest_budget:,} (a multiple of {TILE})")
    else:
        lines.append("no token budget fits: use more devices, FSDP2, more memory, or take the engine elsewhere")
    return lines


def _tokens(plan: Plan) -> Table:
    table = Table(title="Tokens of a step, all devices")
    for name in ("", "tokens", "visible pairs", "scored"):
        table.add_column(name, justify="right" if name else "left")
    for name, work in (("clean", plan.clean), ("noised", plan.noised), ("packed", plan.work)):
        table.add_row(name, f"{work.tokens:,.0f}", f"{work.pairs:.3g}", f"{work.scored:,.0f}")
    response = plan.sequence.response.tokens
    table.caption = (
        f"a response: {plan.sequence.clean.tokens:,.0f} clean and {plan.sequence.noised.tokens:,.0f} noised, "
        f"{response:,.0f} together; {plan.rows:,} micro-batches per device and optimizer step"
    )
    return table


def _flops(plan: Plan) -> Table:
    table = Table(title="FLOPs of a step, all devices, 10^15")
    for name in ("", "dense", "attention", "head", "sum"):
        table.add_column(name, justify="right" if name else "left")
    for name, flops in plan.flops.items():
        values = (flops.dense, flops.attention, flops.head, flops.total)
        table.add_row(name, *(f"{value / 1e15:,.3g}" for value in values))
    total = sum(flops.total for flops in plan.flops.values())
    table.add_section()
    table.add_row("sum", "", "", "", f"{total / 1e15:,.3g}")
    return table


def _gib(value: float) -> str:
    return f"{value / GIB:.1f}" if value else ""
