"""Encoded conversations in memory-mapped files, and a digest of conversations wherever they are."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dirl.packing.pieces import Encoded
from dirl.reading.chat import FitCounts


class MappedConversations(Sequence[Encoded]):
    """What `dirl.reading.encoding` wrote, in the order of the rows.

    Pages are read when wanted, and shared by all processes.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        import datasets
        import pyarrow.compute

        try:
            tables = [datasets.Dataset.from_file(str(path)) for path in parts]
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{parts[0].parent}: {error}; remove the folder, it is then made anew") from error
        self.table = datasets.concatenate_datasets(tables).with_format("numpy")
        lengths = pyarrow.compute.list_value_length(self.table.data.column("input_ids")).to_numpy()
        complete = self.table.data.column("complete").to_numpy()
        self.kept = np.flatnonzero(lengths)
        cut = int((~complete[self.kept]).sum())
        bad = int((~complete[lengths == 0]).sum())
        self.counts = FitCounts(len(self.kept) - cut, cut, len(lengths) - len(self.kept) - bad, bad)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.table[int(self.kept[index])]
        return Encoded(row["input_ids"], row["loss_mask"], bool(row["complete"]))

    def tokens(self) -> Iterator[np.ndarray]:
        """The token ids of all conversations one after the other, in pieces, without copying them."""
        for chunk in self.table.data.column("input_ids").chunks:
            yield chunk.flatten().to_numpy()


def examples_digest(examples: Sequence[Encoded]) -> str:
    """Equal for equal conversations in equal order, in memory or mapped; a gigabyte of tokens takes about a second."""
    digest = hashlib.blake2b(digest_size=16)
    mapped = isinstance(examples, MappedConversations)
    for tokens in examples.tokens() if mapped else (example.input_ids for example in examples):
        digest.update(np.ascontiguousarray(tokens, np.int32).data)
    digest.update(str(len(examples)).encode())
    return digest.hexdigest()
