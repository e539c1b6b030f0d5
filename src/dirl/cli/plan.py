"""The command `plan`: the config and the overrides of `fit`, and what they would cost, without a run."""

from jsonargparse._core import ArgumentGroup
from lightning.pytorch.cli import LightningArgumentParser

from dirl.cli.fit import DirlCLI
from dirl.planning.hours import read_rates
from dirl.planning.named_shapes import SHAPES
from dirl.planning.peaks import PEAKS
from dirl.planning.plan import Plan, make_plan
from dirl.planning.report import print_plan
from dirl.planning.settings import Settings, parse_bytes, read_settings
from dirl.planning.workload import Lengths
from dirl.types import DecodingParams


def plan(args: list[str]) -> None:
    """Print what a run would cost: memory by part, tokens and FLOPs per step, files, hours."""
    print_plan(read_plan(args))


def read_plan(args: list[str]) -> Plan:
    """Parse the arguments of the command and plan."""
    config = PlanCLI(["fit", *args]).config["fit"]
    if config["memory"] is None:
        raise ValueError("memory: how much has a device? Add e.g. --memory=80GB")
    memory, reserve = (parse_bytes(config[name], name) for name in ("memory", "reserve"))
    settings = read_settings(config, config["devices"], config["model_config"])
    lengths = assumed_lengths(settings, config["prompt_tokens"], config["response_tokens"], config["tokens_per_step"])
    rates = read_rates(config["utilisation"], config["device"], config["rollout_tokens_per_s"])
    return make_plan(settings, lengths, memory, reserve, rates)


USAGE = """dirl plan --config CONFIG [--config CONFIG ...] --memory SIZE [--devices N] [--model_config NAME]
                 [--prompt_tokens N] [--response_tokens N] [--tokens_per_step X] [--reserve SIZE]
                 [--utilisation X] [--rollout_tokens_per_s X] [--device NAME]
                 [any option of dirl fit]"""


class PlanCLI(DirlCLI):
    """The parser of `fit` with the options of `plan` added; it instantiates and runs nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        known = ", ".join(SHAPES)
        parser.usage, parser.description = USAGE, "What `fit` would cost: memory, tokens, FLOPs, files, hours."
        group = parser.add_argument_group("Options of plan")
        group.add_argument("--memory", type=str | None, default=None, help="Of a device, e.g. 80GB or 79GiB.")
        group.add_argument("--devices", type=int | None, default=None, help="In all hosts; default: as configured.")
        group.add_argument(
            "--model_config", type=str | None, default=None, help=f"In place of the model: config.json, {known}."
        )
        group.add_argument(
            "--reserve", type=str, default="3GiB", help="What no tensor takes: CUDA context, NCCL, holes."
        )
        group.add_argument(
            "--prompt_tokens",
            type=int | None,
            default=None,
            help="Assumed mean; default: RL max_prompt_tokens, SFT an eighth of max_tokens.",
        )
        group.add_argument(
            "--response_tokens",
            type=int | None,
            default=None,
            help="Assumed mean; default: what the config allows at most.",
        )
        group.add_argument(
            "--tokens_per_step",
            type=float | None,
            default=None,
            help="Assumed mean of a denoising step; default: what the decoding strategy commits, 2 if that varies.",
        )

        _add_rates(group)

    def _set_seed(self) -> None:
        """A plan draws nothing, so it sets no seed."""

    def instantiate_classes(self) -> None:
        """A plan needs no device and no weights, so it makes no objects."""

    def _run_subcommand(self, subcommand: str) -> None:
        """A plan is made of the config alone, so nothing is run."""


def _add_rates(group: ArgumentGroup) -> None:
    """Add the options that a plan's hours are calculated from."""
    group.add_argument(
        "--utilisation",
        type=str | None,
        default=None,
        help="Of training, for hours: a share of the bf16 peak, or a run's metrics.csv with throughput/mfu.",
    )
    group.add_argument(
        "--rollout_tokens_per_s",
        type=float | None,
        default=None,
        help="Response tokens a second that an engine makes on one device, for hours of rollouts.",
    )
    group.add_argument("--device", type=str, default="H100", help=f"Whose peak it is: {', '.join(PEAKS)}.")


def assumed_lengths(
    settings: Settings, prompt_tokens: int | None, response_tokens: int | None, tokens_per_step: float | None
) -> Lengths:
    """What the user assumes, else the most that the config allows."""
    data = settings.data
    if settings.stage == "rl":
        prompt = data["max_prompt_tokens"] if prompt_tokens is None else prompt_tokens
        most = settings.model["decoding"]["max_response_tokens"]
    else:
        prompt = data["max_tokens"] // 8 if prompt_tokens is None else prompt_tokens
        most = data["max_tokens"] - prompt
    response = most if response_tokens is None else response_tokens
    if prompt < 0 or response < 1:
        raise ValueError(f"prompt_tokens={prompt}, response_tokens={response}: use at least 0 and 1")
    if tokens_per_step is None:
        tokens_per_step = _committed(settings)
    if not 1 <= tokens_per_step <= settings.block_size:
        raise ValueError(
            f"tokens_per_step={tokens_per_step:g}: a denoising step commits 1 to block_size={settings.block_size}"
        )
    return Lengths(prompt, response, tokens_per_step)


def _committed(settings: Settings) -> float:
    """Tokens that a denoising step commits, so far as the config says."""
    decoding = settings.model["decoding"] if settings.stage == "rl" else {"strategy": "low_confidence_dynamic"}
    if decoding["strategy"] == "low_confidence_dynamic":
        return min(2.0, settings.block_size)
    return float(DecodingParams(**decoding).quota(settings.block_size))
