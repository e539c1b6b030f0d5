"""What an engine is given as new weights, checked in one place: names, shapes, and that all numbers are finite."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dirl.finite import NotFiniteError


def checked(
    weights: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size], policy_version: int
) -> Iterator[tuple[str, Tensor]]:
    """The weights of one update, one at a time, as they come; the engine takes its version only after the last.

    Args:
        shapes: of all that the engine's model has, by the names of checkpoints (`ModelFamily.weights`).

    Raises:
        ValueError: a name is unknown or, after the last weight, missing; a shape is another.
        NotFiniteError: after the last weight, so that the host waits for the device once in an update.
    """
    missing, sums = set(shapes), {}
    for name, value in weights:
        if name not in shapes:
            raise ValueError(f"weight {name!r} is unknown to the engine's model")
        if shapes[name] != value.shape:
            raise ValueError(f"weight {name!r} has shape {tuple(value.shape)}, the engine {tuple(shapes[name])}")
        missing.discard(name)
        if value.is_floating_point():
            # An infinity or a NaN never adds up to a finite number; numbers that fp16 can hold may do so in fp16.
            wide = torch.float32 if value.dtype == torch.float16 else None
            sums[name] = value.detach().sum(dtype=wide).isfinite()
        yield name, value
    if missing:
        raise ValueError(f"the weight update left out {sorted(missing)}; an update must carry all weights")
    good = torch.stack(list(sums.values())).tolist()
    if not all(good):
        wrong = [name for name, fine in zip(sums, good, strict=True) if not fine]
        raise NotFiniteError(
            f"weights of policy version {policy_version}: {wrong[0]!r} ({len(wrong)} in all) holds numbers that are "
            "not finite, or do not add up to one that is: no engine samples with them; go back to an earlier checkpoint"
        )
