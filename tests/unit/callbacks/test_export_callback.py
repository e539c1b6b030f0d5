"""The Export callback on several ranks: whatever happens on the first, all gather to the end and end together."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dirl.callbacks import Export
from tests.tiny import TinyModel
from torch import Tensor

from dirl.models.families.weights import weight_shapes


class Rank:
    """A rank's trainer and module, in as far as the callback asks them; `gathered` counts what it took part in."""

    def __init__(self, rank: int, root: Path, first_wrote: bool = True) -> None:
        self.description = TinyModel().describe()
        self.model = SimpleNamespace(backbone=TinyModel().build(self.description.config))
        self.default_root_dir, self.is_global_zero, self.fast_dev_run = str(root), rank == 0, False
        self.strategy = self
        self.gathered, self.said = 0, []
        self.first_wrote = first_wrote

    def full_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.description.family.weights(self.model.backbone, dtype):
            self.gathered += 1
            yield name, value

    def weight_shapes(self) -> dict[str, torch.Size]:
        return weight_shapes(self.description.family, self.model.backbone)

    def broadcast(self, value: bool) -> bool:
        self.said.append(value)
        return value if self.is_global_zero else self.first_wrote

    @property
    def all_weights(self) -> int:
        return len(list(self.model.backbone.named_parameters()))


def test_an_error_on_the_first_rank_is_raised_after_all_weights_are_gathered_and_told(tmp_path: Path) -> None:
    first = Rank(0, tmp_path)
    first.model.backbone.model.embed_tokens.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"embed_tokens.weight holds numbers that are not finite"):
        Export().write(first, first, "model")
    assert (first.gathered, first.said) == (first.all_weights, [False])
    assert not list(tmp_path.iterdir())


def test_the_other_ranks_end_where_the_first_could_not_write(tmp_path: Path) -> None:
    other = Rank(1, tmp_path, first_wrote=False)
    with pytest.raises(RuntimeError, match=r"the first process could not write the model to .*/model; it says why"):
        Export().write(other, other, "model")
    assert other.gathered == other.all_weights
    fine = Rank(1, tmp_path)
    Export().write(fine, fine, "model")
    assert fine.gathered == fine.all_weights
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "export.every_n_steps=0: use at least 1"),
        ({"max_shard_size": "5 elephants"}, "export.max_shard_size='5 elephants'"),
        ({"max_shard_size": "-1GB"}, "export.max_shard_size='-1GB'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Export(**options)
