"""Conversations encoded once a host, by several processes, into memory-mapped files that later runs reuse."""

import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from dirl.models import special_tokens
from dirl.packing.pieces import Encoded
from dirl.progress_bar import bar, on_terminal
from dirl.reading import chat, control_tokens, json_rows, schemas
from dirl.reading import rows as rows_module
from dirl.reading.chat import FitCounts, Turns, encode_turns, fit_conversation
from dirl.reading.fingerprint import fingerprint, local_files, source_state
from dirl.reading.mapped import MappedConversations
from dirl.reading.rows import OnBadRow, Row, Rows, read_rows
from dirl.reading.schemas import RowSchema, conversation_row
from dirl.spans import Spans

log = logging.getLogger(__name__)

CODE = (chat, control_tokens, json_rows, rows_module, schemas, special_tokens)
"""The modules that decide into which tokens a row is encoded, with this one."""
SMALL_DATA = 4 * 2**20
"""Files of fewer bytes in all are encoded in memory, by each process for itself: that takes a few seconds."""
ROWS_PER_WORKER = 1000
MOST_WORKERS = 16
"""Rows that a process is started for by default, and the most processes."""


@dataclass(frozen=True)
class ConversationEncoder:
    """Makes tokens of rows. Which ones is decided by the row, these values and the code, and by nothing else."""

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    overflow: Literal["drop", "cut", "error"]
    turns: Turns = "all"
    chat_template_kwargs: Mapping[str, Any] | None = None
    banned: Spans = ()
    """Ids that may stand nowhere, as they have no part in the softmax and so no finite loss: `ModelSpec.banned`."""
    row_schema: RowSchema = "auto"
    column: str | None = None
    """The column that holds the conversation, see `conversation_row`."""
    on_bad_row: OnBadRow = "error"

    def __call__(self, rows: Rows, index: int) -> list[Encoded]:
        """A row as arrays (int32, bool), 5 bytes a token, one or more (`encode_turns`) that are within the limit.

        What is not trained has no tokens: `DROPPED` for its length, `BAD` where bad rows are skipped.
        """
        where = rows.where(index)
        try:
            examples = self.encode(rows[index], where)
        except ValueError as error:
            if self.on_bad_row == "error":
                raise
            log.debug("skipped: %s", error)
            return [BAD]
        return [self._fitted(example, where) for example in examples]

    def encode(self, row: Row, where: str) -> list[Encoded]:
        """A row in tokens, whatever their number."""
        conversation = conversation_row(row, where, self.row_schema, self.column)
        tools = {"tools": conversation.tools} if conversation.tools else {}
        examples = encode_turns(
            self.tokenizer,
            conversation.messages,
            self.stop_token_ids,
            turns=self.turns,
            chat_template_kwargs={**(self.chat_template_kwargs or {}), **tools},
            where=where,
        )
        for example in examples:
            check_ids(example.input_ids, self.banned, self.tokenizer, where)
        return examples

    def _fitted(self, example: Encoded, where: str) -> Encoded:
        fitted = fit_conversation(example, self.max_tokens, self.overflow, None, where)
        if fitted is None:
            return DROPPED
        ids, loss_mask = np.asarray(fitted.input_ids, np.int32), np.asarray(fitted.loss_mask, bool)
        return dataclasses.replace(fitted, input_ids=ids, loss_mask=loss_mask)


DROPPED = Encoded(np.empty(0, np.int32), np.empty(0, bool))
BAD = Encoded(np.empty(0, np.int32), np.empty(0, bool), complete=False)


def check_on_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in get_args(OnBadRow):
        raise ValueError(f"data.on_bad_row={on_bad_row!r}: use {' or '.join(get_args(OnBadRow))}")


def check_ids(ids: Sequence[int] | np.ndarray, banned: Spans, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise ValueError if one of the ids is banned."""
    for first, end in banned:
        found = next((index for index in ids if first <= index < end), None)
        if found is not None:
            raise ValueError(
                f"{where}: holds token {found} ({tokenizer.decode([found])!r}), which the model never writes: the mask "
                "token, or an id without a token; remove it from the text, or name another mask token"
            )


def keep_encoded(
    source: str | list[str], split: str, encoder: ConversationEncoder, workers: int | None = None, quiet: bool = True
) -> None:
    """Encode a source that is not small into a folder of the datasets cache (`HF_DATASETS_CACHE`), if it is not there.

    The folder is named by a fingerprint of all that decides the result. It gets its name when it is complete, so runs
    that start together do not disturb one another, and what a killed one leaves is not taken for complete.

    Args:
        source, split: as in `read_rows`.
        workers: processes that encode; None: one for every `ROWS_PER_WORKER` rows, as far as there are cores.
        quiet: no progress bar.

    Raises:
        ValueError: of the first bad row, whatever the number of processes; or the folder cannot be written.
    """
    if _is_small(source):
        return
    state, open_rows = source_state(source, split)
    folder = _folder(state, encoder)
    if _parts(folder):
        return
    rows = open_rows()
    try:
        _encode_into(folder, rows, split, encoder, workers, quiet)
    except OSError as error:
        raise ValueError(
            f"conversations cannot be encoded into {folder}: {error}; if that place is full or read-only, set the "
            "environment variable HF_DATASETS_CACHE to a folder with room for 5 bytes a token"
        ) from error
    log.info("%s: %d conversations encoded into %s", source, len(rows), folder)


def load_encoded(
    source: str | list[str], split: str, encoder: ConversationEncoder, quiet: bool = True
) -> tuple[Sequence[Encoded], FitCounts]:
    """All conversations of a source in its order, without the dropped ones, and what the length limit did.

    A small source is encoded here and now; of any other, `keep_encoded` must have been called on this host.
    """
    if _is_small(source):
        return encode_rows(read_rows(source, split), split, encoder, quiet)
    folder = _folder(source_state(source, split)[0], encoder)
    parts = _parts(folder)
    if not parts:
        raise ValueError(
            f"{source!r}: the first process of this host has left nothing in {folder}: if it has not failed itself, "
            "give all processes the same files and the same HF_DATASETS_CACHE"
        )
    examples = MappedConversations(parts)
    return examples, examples.counts


def _is_small(source: str | list[str]) -> bool:
    files = local_files(source)
    return bool(files) and sum(path.stat().st_size for path in files) < SMALL_DATA


def encode_rows(
    rows: Rows, split: str, encoder: ConversationEncoder, quiet: bool = True
) -> tuple[Sequence[Encoded], FitCounts]:
    """Encode rows that are at hand, in memory."""
    indices = bar(range(len(rows)), desc=f"tokenise {split}", shown=not quiet, leave=False)
    examples = [example for index in indices for example in encoder(rows, index)]
    kept = [example for example in examples if len(example.input_ids)]
    empty = [example.complete for example in examples if not len(example.input_ids)]
    cut = sum(not example.complete for example in kept)
    return kept, FitCounts(len(kept) - cut, cut, empty.count(True), empty.count(False))


def _folder(state: list, encoder: ConversationEncoder) -> Path:
    import datasets

    settings = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    tokenizer = settings.pop("tokenizer")
    name = fingerprint(state, tokenizer, settings, [*CODE, sys.modules[__name__]])
    return Path(datasets.config.HF_DATASETS_CACHE) / "dirl" / name


def _encode_into(
    folder: Path, rows: Rows, split: str, encoder: ConversationEncoder, workers: int | None, quiet: bool
) -> None:
    """Write Arrow files to `folder`, which exists when all of them are complete, and not before."""
    import datasets

    processes = min(workers or _default_workers(len(rows)), len(rows))
    features = {"input_ids": [datasets.Value("int32")], "loss_mask": [datasets.Value("bool")]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True)
    with place as unfinished, _progress_bars(not quiet and on_terminal()):
        parts = Path(unfinished, "parts")
        parts.mkdir()
        datasets.Dataset.from_dict({"row": range(len(rows))}).map(
            _Batches(rows, encoder, Path(unfinished)),
            batched=True,
            batch_size=64,
            input_columns="row",
            remove_columns="row",
            features=datasets.Features(**features, complete=datasets.Value("bool")),
            cache_file_name=str(parts / "part.arrow"),
            new_fingerprint=folder.name,
            num_proc=processes if processes > 1 else None,
            desc=f"tokenise {split}",
        )
        try:
            parts.rename(folder)
        except OSError:
            if not _parts(folder):  # else another run was faster, with the same result
                raise


def _parts(folder: Path) -> list[Path]:
    """The files of a folder that is complete, none of one that is not there or empty."""
    parts = sorted(folder.glob("*.arrow"))
    wanted = int(parts[0].stem.partition("_of_")[2] or 1) if parts else 0
    if len(parts) != wanted:
        raise ValueError(f"{folder} has {len(parts)} of {wanted} files; remove the folder, it is then made anew")
    return parts


def _default_workers(rows: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, rows // ROWS_PER_WORKER))


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    import datasets

    hide = not shown and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class _Batches:
    """Encodes rows by their numbers, in any process.

    Each process has a stretch of the rows. All have ended before `datasets` raises the error of the first that failed,
    so a failed one leaves a file in `notes`, and those of later rows stop.
    """

    rows: Rows
    encoder: ConversationEncoder
    notes: Path

    def __call__(self, indices: list[int]) -> dict[str, list]:
        if any(int(note.stem) < indices[0] for note in self.notes.glob("*.failed")):
            raise RuntimeError(f"stopped at row {indices[0]}: an earlier one cannot be encoded")
        encoded = [example for index in indices for example in self._encode(index)]
        return {field.name: [getattr(e, field.name) for e in encoded] for field in dataclasses.fields(Encoded)}

    def _encode(self, index: int) -> list[Encoded]:
        try:
            return self.encoder(self.rows, index)
        except ValueError:
            (self.notes / f"{index}.failed").touch()
            raise
