"""Tables of results as Markdown, HTML and CSV."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dirl.evaluation.results import Result
from dirl.evaluation.tables import MEAN, SHOWN, Comparison, Pair, estimate

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --line: #c6ccd4; --pale: #f3f5f8; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --line: #4a5563; --pale: #222a35; --back: #161b22; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { border: 1px solid var(--line); padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th { background: var(--pale); }
td:nth-child(-n+2) { text-align: left; }
"""


def markdown(table: Comparison, pairs: Sequence[Pair], made: Sequence[str]) -> str:
    head, body = columns(table), cells(table)
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)]), *map(_line, body)]
    if pairs:
        rows = pair_cells(pairs)
        lines += [
            "",
            _line(PAIR_COLUMNS),
            _line(["---", "---", *["---:"] * (len(PAIR_COLUMNS) - 2)]),
            *map(_line, rows),
        ]
    return "\n".join([*lines, "", *(f"- {line}" for line in made)]) + "\n"


def page(table: Comparison, pairs: Sequence[Pair], made: Sequence[str]) -> str:
    """One HTML page, which needs no other file."""
    names = list(SHOWN.values())
    groups = "".join(f'<th colspan="{len(names)}">{_text(group_title(table, g))}</th>' for g in table.groups)
    head = f'<tr><th rowspan="2">model</th><th rowspan="2">decoding</th>{groups}</tr>'
    head += f"<tr>{''.join(f'<th>{_text(name)}</th>' for name in names * len(table.groups))}</tr>"
    parts = [f"<table><thead>{head}</thead><tbody>{_rows(cells(table))}</tbody></table>"]
    if pairs:
        titles = "".join(f"<th>{_text(name)}</th>" for name in PAIR_COLUMNS)
        parts.append(f"<table><thead><tr>{titles}</tr></thead><tbody>{_rows(pair_cells(pairs))}</tbody></table>")
    parts.append(f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in made)}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>Results</h1>\n{''.join(parts)}\n</body></html>\n"
    )


def comma_separated(results: Sequence[Result], names: Sequence[str]) -> str:
    """A line for each metric of each result, with its interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "decoding", "task", "problems", "samples", "metric", "value", "low", "high"])
    for name, result in zip(names, results, strict=True):
        for metric in result.metrics:
            if not metric.endswith(("/low", "/high")):
                found = estimate(result.metrics, metric)
                assert found is not None
                interval = ["" if bound is None else repr(bound) for bound in (found.low, found.high)]
                own = [name, result.decoding, result.task, result.problems, result.count]
                writer.writerow([*own, metric, repr(found.value), *interval])
    return out.getvalue()


def columns(table: Comparison) -> list[str]:
    titles = [f"{group_title(table, group)} {name}" for group in table.groups for name in SHOWN.values()]
    return ["model", "decoding", *titles]


def group_title(table: Comparison, group: str) -> str:
    return group if group == MEAN else f"{group} ({table.labels[group]})"


def cells(table: Comparison) -> list[list[str]]:
    rows = []
    for row in table.rows:
        found = [(metric, table.estimate(row, group, metric)) for group in table.groups for metric in SHOWN]
        rows.append([row.model, row.decoding, *("" if one is None else one.text(metric) for metric, one in found)])
    return rows


PAIR_COLUMNS = ["second over first", "task, decoding", "difference", "95 % interval", "better", "worse", "p"]


def pair_cells(pairs: Sequence[Pair]) -> list[list[str]]:
    rows = []
    for pair in pairs:
        found = pair.paired
        interval = (
            "" if found.low is None or found.high is None else f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        )
        rows.append(
            [
                f"{pair.second} over {pair.first}",
                f"{pair.task}, {pair.decoding}",
                f"{100 * found.difference:+.1f}",
                interval,
                str(found.better),
                str(found.worse),
                f"{found.p_value:.2g}",
            ]
        )
    return rows


def made_with(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    """How each result came about, a line each; equal lines once."""
    return list(dict.fromkeys(_made(result, name) for name, result in zip(names, results, strict=True)))


def _made(result: Result, name: str) -> str:
    given, last = result.settings, result.starts[-1] if result.starts else {}
    decoding = result.decoding_params
    drawn = "greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}"
    top_p = None if decoding.top_p == 1 else decoding.top_p
    cuts = {"top_k": decoding.top_k or None, "top_p": top_p, "min_p": decoding.min_p}
    drawn += "".join(f", {cut} {value:g}" for cut, value in cuts.items() if value)
    strategy: str = decoding.strategy
    if strategy == "low_confidence_dynamic":
        strategy += f" at {decoding.threshold:g}"
    versions = ", ".join(f"{lib} {given['versions'][lib]}" for lib in ("dirl", "torch", "transformers", "lmdeploy")
                         if lib in given["versions"])  # fmt: skip
    parts = [
        f"{name}, {result.task}, {result.decoding}: {result.problems} problems x {result.count}",
        f"block size {result.block_size}, {strategy}, {drawn}, at most {decoding.max_response_tokens} tokens",
        *_asked_and_judged(given),
        f"seed {given['seed']}",
        f"{last.get('engine')} in {last.get('dtype')} on {last.get('device')}",
        f"{versions}, commit {last.get('commit') or 'unknown'}",
    ]
    return "; ".join([*parts, *result.notes, *_unjudged(result)])


def _asked_and_judged(given: Mapping[str, Any]) -> list[str]:
    if "lm_eval" in given["versions"]:
        return [f"prompts and metrics of lm_eval {given['versions']['lm_eval']}"]
    template = given["task"].get("prompt_template")
    prompt = f"prompt {template!r}" if template else "prompt: the question alone"
    return [prompt, f"rewards {', '.join(reward['class'] for reward in given['rewards'])}"]


def _unjudged(result: Result) -> list[str]:
    """What could not be judged, the first of it by name."""
    if not result.unjudged:
        return []
    first = result.unjudged[0]
    named = f"prompt {first['prompt_id']} sample {first['sample_index']}: {first['why']}"
    return [f"{len(result.unjudged)} responses could not be judged and count as wrong, the first: {named}"]


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)


def _text(value: str) -> str:
    return html.escape(value)
