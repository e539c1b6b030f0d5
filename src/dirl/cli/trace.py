"""The command `trace`: a page that shows how responses were denoised."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dirl.outputs import check_new_file
from dirl.progress_bar import bar
from dirl.report.page import write_page
from dirl.report.trace_data import Row, fitting_block_size, told_texts, trace_data
from dirl.report.trace_page import trace_page
from dirl.trajectory_files import read_annotated


def trace(
    file: str,
    model: str | None = None,
    output: str | None = None,
    block_size: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make one HTML page of a file of trajectories: how each response was denoised, with rewards and log-probs.

    Args:
        file: trajectories (JSON Lines), as `rollout`, `evaluate` and `fit` write them.
        model: folder, hub name or checkpoint of the model that made them, whose tokenizer gives the texts; None: the
            texts in the file, or ids where it has none.
        output: page to write; None: beside the file, with the ending .html.
        block_size: of the model, where neither it nor the file says so; None: guessed from the step maps.
        limit: show the first so many; None: all.
        overwrite: an existing page is replaced.
    """
    for name, value in {"block_size": block_size, "limit": limit}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: use at least 1, or null")
    source, page = Path(file), Path(file).with_suffix(".html") if output is None else Path(output)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "no such file here"
        raise ValueError(f"file={file!r}: {what}; name a file that `rollout`, `evaluate` or `fit` has written")
    if page.resolve() == source.resolve():
        raise ValueError(f"output={str(page)!r} is the file itself: name another")
    check_new_file(page, "output", overwrite)
    rows = list(bar(islice(read_annotated(source), limit), desc="read", unit=" trajectories", leave=False))
    if not rows:
        raise ValueError(f"file={file!r}: holds no trajectories")
    data = shown(rows, model, block_size)
    write_page(page, trace_page(data, source.name))
    counts = f"trajectories: {len(rows)}, prompts: {len(data['prompts'])}"
    print(f"{counts}, written to {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if data["block_size_guessed"]:
        print(f"block size {data['block_size']} is guessed from the step maps; --model or --block_size says what it is")
    if None in data["texts"]:
        print("tokens are shown by their ids: give --model, or make files with texts (--texts true of `rollout`)")


def shown(rows: Sequence[Row], model: str | None, block_size: int | None) -> dict[str, Any]:
    """What the page shows, with where texts and block size are from."""
    if model is not None:
        return _by_model(rows, model, block_size) | {"texts_from": model, "block_size_guessed": False}
    texts = told_texts(rows)
    told = next((words.block_size for _, words in rows if words.block_size is not None), None)
    size = block_size or told or fitting_block_size([trajectory for trajectory, _ in rows])
    origin = {"texts_from": "the file" if texts else None, "block_size_guessed": block_size is None and told is None}
    return trace_data(rows, size, texts) | origin


def _by_model(rows: Sequence[Row], model: str, block_size: int | None) -> dict[str, Any]:
    from dirl.models import PretrainedModel  # not above: transformers takes seconds
    from dirl.models.token_texts import special_ids, token_texts

    description = PretrainedModel(model, block_size=block_size).describe()
    for trajectory, _ in rows:
        trajectory.check(description.spec)
    used = {i for t, _ in rows for ids in (t.prompt_ids, t.response_ids) for i in ids}
    special = special_ids(description.tokenizer)
    return trace_data(rows, description.spec.block_size, token_texts(description.tokenizer, used), special)
