"""lm-evaluation-harness: its prompts, stop sequences, filters and metrics around scripted responses, by hand."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import TinyModel
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.cli.evaluate import evaluate
from dirl.cli.main import main
from dirl.cli.prompt_data import PromptData
from dirl.cli.short_names import long_names
from dirl.evaluation.harness.decoding import check_decoding, cut, decoding_of, stop_sequences
from dirl.evaluation.results import read_results
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.response import finished_trajectory, response_end
from dirl.tasks import LMEval
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
output_type: {kind}
fewshot_split: train
test_split: test
num_fewshot: 1
fewshot_config: {{sampler: first_n}}
doc_to_text: "{{{{question}}}}="
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
fewshot_delimiter: "+"
generation_kwargs: {{until: ["+"], max_gen_toks: 8}}
filter_list:
- {{name: first, filter: [{{function: regex, regex_pattern: "([0-4])"}}, {{function: take_first}}]}}
- {{name: whole, filter: [{{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
QUESTIONS = [("0+1", "1"), ("0+2", "2"), ("2+2", "4"), ("3+0", "3")]
SAID = {"0": "1+444", "1": "32", "2": "40+0", "3": "3"}
"""Right by the first digit: 0, 2, 3; by the whole text up to the plus sign: 0, 3."""


class Scripted(RolloutEngine):
    """Says what is written for each problem, and keeps what it was asked."""

    def __init__(self, said: dict[str, str], fails_at: int | None = None) -> None:
        self.said, self._fails_at, self.asked, self.limits, self.set_up = said, fails_at, [], [], 0

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        self.tokenizer, self.spec, self.set_up = tokenizer, spec, self.set_up + 1

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        self.limits.append((decoding.temperature, decoding.max_response_tokens))
        for request in requests:
            if len(self.asked) == self._fails_at:
                raise RuntimeError("the engine is gone")
            self.asked.append(self.tokenizer.decode(list(request.prompt_ids)))
            stop, size = self.spec.stop_token_ids[0], self.spec.block_size
            ids = [*self.tokenizer(self.said[request.prompt_id], add_special_tokens=False)["input_ids"], stop]
            ids += [stop] * (-(len(request.prompt_ids) + len(ids)) % size)
            end = response_end(ids, self.spec.stop_token_ids, decoding.max_response_tokens)
            assert end is not None
            yield finished_trajectory(request, ids, [1] * len(ids), [-0.5] * len(ids), end, self.policy_version)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks: one generates, one ranks choices, a group has both."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    made = tmp_path / "tasks"
    made.mkdir()
    (made / "train.jsonl").write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS]
    (made / "test.jsonl").write_text("\n".join(rows) + "\n")
    for name, kind in (("tiny_sums", "generate_until"), ("tiny_choice", "multiple_choice")):
        (made / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, folder=made))
    (made / "both.yaml").write_text("group: both\ntask: [tiny_sums, tiny_choice]\n")
    return made


def run(folder: Path, engine: RolloutEngine, output: Path | None = None, names: str = "tiny_sums", **options) -> None:
    task = LMEval(names, include_path=str(folder), **options)
    evaluate(source=TinyModel(), task=task, engine=engine, output=None if output is None else str(output), portion=2)


def test_metrics_by_filter_and_their_errors_are_those_by_hand(folder: Path, tmp_path: Path) -> None:
    run(folder, Scripted(SAID), tmp_path / "out")
    (found,) = read_results(tmp_path / "out")
    assert found.metrics["exact_match,first"] == found.metrics["accuracy"] == 0.75
    assert found.metrics["exact_match,whole"] == 0.5
    assert found.metrics["exact_match,first/stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert found.metrics["exact_match,whole/stderr"] == pytest.approx(math.sqrt(0.5 * 0.5 / 3))
    assert [p.responses[0].text for p in found.read_problems()] == ["1", "32", "40", "3"], "cut at the plus sign"
    assert [p.responses[0].right for p in found.read_problems()] == [True, False, True, True]
    assert found.settings["versions"]["lm_eval"] and found.settings["correct"] == "exact_match,first"
    samples = (tmp_path / "out" / "problems" / "tiny_sums" / "default.lm_eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["filter"] for line in samples] == ["first"] * 4 + ["whole"] * 4


class Deaf(TorchEngine):
    """Goes on behind stop strings."""

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        return super().generate(requests, replace(decoding, stop_strings=()))


def test_responses_that_end_at_a_stop_sequence_are_those_that_were_cut_there_with_fewer_tokens(
    folder: Path, tmp_path: Path
) -> None:
    found = []
    for engine, name in ((Deaf(), "whole"), (TorchEngine(), "ended")):
        run(folder, engine, tmp_path / name, generation_kwargs={"until": ["+", "2", "1"], "max_gen_toks": 40})
        found += read_results(tmp_path / name)
    whole, ended = ([problem.responses[0] for problem in result.read_problems()] for result in found)
    assert [(r.text, r.right) for r in whole] == [(r.text, r.right) for r in ended]
    assert sum(r.tokens for r in ended) < sum(r.tokens for r in whole) / 2
    assert found[1].settings["decoding"]["stop_strings"] == ["+", "2", "1"]


def test_prompts_are_conversations_with_an_example_or_plain_text(folder: Path) -> None:
    chat, turn, plain = Scripted(SAID), Scripted(SAID), Scripted(SAID)
    run(folder, chat)
    run(folder, turn, fewshot_as_multiturn=False)
    run(folder, plain, chat_template=False)
    end = "<|im_end|>"
    assert chat.asked[0] == f"<|user|>1+1={end}<|assistant|>2{end}<|user|>0+1={end}<|assistant|>"
    assert turn.asked[0] == f"<|user|>1+1=2+0+1={end}<|assistant|>"
    assert plain.asked[0] == "1+1=2+0+1="


def test_a_task_says_temperature_and_length_unless_they_are_given(folder: Path) -> None:
    engine, other = Scripted(SAID), Scripted(SAID)
    run(folder, engine)
    run(folder, other, generation_kwargs={"temperature": 0.5, "max_gen_toks": 6})
    assert set(engine.limits) == {(0.0, 8)} and set(other.limits) == {(0.5, 6)}


def test_an_evaluation_that_failed_goes_on_with_what_it_had(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(RuntimeError, match="the engine is gone"):
        run(folder, Scripted(SAID, fails_at=3), output)
    with (output / "tiny_sums" / "default.jsonl").open("a") as file:
        file.write('{"prompt_id": "2", "sam')  # as a kill leaves it
    again, third = Scripted(SAID), Scripted(SAID)
    run(folder, again, output)
    assert len(again.asked) == 2, "the portion that was not whole"
    run(folder, third, output)
    assert not third.set_up, "no weights are loaded where nothing is left to be done"
    assert read_results(output)[0].metrics["accuracy"] == 0.75
    (folder / "test.jsonl").write_text(json.dumps({"question": "4+0", "answer": "4"}) + "\n")
    with pytest.raises(ValueError, match="problem 0 was asked otherwise"):
        run(folder, Scripted(SAID), output)


def test_a_metric_that_judges_no_single_problem_gives_no_accuracy(folder: Path, tmp_path: Path) -> None:
    """BLEU is of all responses together; two responses to a problem are made where the task says so."""
    text = (folder / "tiny_sums.yaml").read_text().replace("metric: exact_match, aggregation: mean", "metric: bleu")
    (folder / "tiny_sums.yaml").write_text(text.replace("tiny_sums", "tiny_bleu") + "repeats: 2\n")
    engine = Scripted(SAID)
    run(folder, engine, tmp_path / "out", names="tiny_bleu", generation_kwargs={"temperature": 1.0})
    (found,) = read_results(tmp_path / "out")
    assert "bleu,whole" in found.metrics and "accuracy" not in found.metrics and found.settings["correct"] is None
    assert found.count == 2 and found.metrics["responses"] == len(engine.asked) == 8
    assert any("no accuracy" in note for note in found.notes)


def test_the_command_runs_a_group_on_two_models(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "tiny_sums.yaml").read_text()
    (folder / "tiny_more.yaml").write_text(text.replace("task: tiny_sums", "task: tiny_more"))
    (folder / "both.yaml").write_text(
        "group: both\ntask: [tiny_sums, tiny_more]\n"
        "aggregate_metric_list: [{metric: exact_match, weight_by_size: true, filter_list: [first]}]\n"
    )
    model = "class_path: tests.tiny.TinyModel"
    main(
        [
            *("evaluate", "--task", "lm_eval:both", f"--task.include_path={folder}", "--data.limit=2"),
            *(
                f"--models={{a: {{{model}}}, b: {{{model}, init_args: {{nudge: 0.3}}}}}}",
                f"--output={tmp_path / 'out'}",
            ),
        ]
    )
    said = capsys.readouterr().out
    for words in (
        "lm-evaluation-harness",
        "group a/both",
        "the same problems, paired",
        "accuracy is exact_match,first",
    ):
        assert words in said
    found = read_results(tmp_path / "out")
    assert [(r.model, r.task) for r in found] == [(m, t) for m in "ab" for t in ("tiny_sums", "tiny_more")]
    groups = json.loads((tmp_path / "out" / "groups.json").read_text())
    assert groups["b/both/default"]["exact_match,first"] == found[2].metrics["accuracy"]
    main(["compare", str(tmp_path / "out")])
    assert "prompts and metrics of lm_eval" in capsys.readouterr().out


def test_what_needs_a_log_likelihood_is_refused_before_weights_are_loaded(folder: Path) -> None:
    engine = Scripted(SAID)
    for names in ("tiny_choice", "tiny_sums,tiny_choice", "both"):
        with pytest.raises(ValueError, match="lm_eval:tiny_choice: its output_type is multiple_choice, and a block"):
            run(folder, engine, names=names)
    assert not engine.set_up


def test_what_the_tasks_decide_is_not_asked_of_the_command(folder: Path) -> None:
    task, source = LMEval("tiny_sums", include_path=str(folder)), TinyModel()
    with pytest.raises(ValueError, match=r"samples: given, and task=lm_eval:tiny_sums decides that itself"):
        evaluate(source=source, task=task, samples=4)
    with pytest.raises(ValueError, match=r"tasks\.own: tasks of lm-evaluation-harness are evaluated alone"):
        evaluate(source=source, tasks={"own": task}, decoding={"greedy": DecodingParams()})
    with pytest.raises(ValueError, match=r"max_gen_toks: 9}"):
        evaluate(source=source, task=task, decoding={"own": DecodingParams(max_response_tokens=9)})
    with pytest.raises(ValueError, match="for `lightning run evaluate` alone"):
        PromptData().load(source.describe(), task)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dirl\[lm-eval\]'"):
        LMEval("gsm8k")


def test_the_short_name_is_the_class_with_its_names() -> None:
    long = ["--task=dirl.tasks.LMEval", '--task.names=["gsm8k", "drop"]']
    assert long_names(["--task", "lm_eval:gsm8k,drop", "--seed=1"]) == [*long, "--seed=1"]
    assert long_names(["--task=lm_eval:gsm8k, drop"]) == long
    assert long_names(["--task", "dirl.tasks.GSM8K"]) == ["--task", "dirl.tasks.GSM8K"]
    with pytest.raises(ValueError, match="no task is named"):
        long_names(["--task=lm_eval:"])


def test_the_short_name_in_a_config_is_an_error_that_says_the_long_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: lm_eval:gsm8k\n")
    with pytest.raises(ValueError, match=r"own.yaml: task: .*class_path: dirl.tasks.LMEval, .*names: \[gsm8k\]"):
        main(["evaluate", f"--config={tmp_path / 'own.yaml'}"])


def test_generation_kwargs_as_decoding() -> None:
    base = DecodingParams(threshold=0.8)
    assert decoding_of(base, {}) == DecodingParams(threshold=0.8, temperature=0, max_response_tokens=256)
    assert decoding_of(base, {"do_sample": False, "temperature": 0.7}).temperature == 0
    assert decoding_of(base, {"do_sample": True}).temperature == 1
    drawn = decoding_of(base, {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_new_tokens": 7})
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_response_tokens) == (0.7, 0.9, 0, 7)
    assert decoding_of(base, {"until": ["Q:", ""]}).stop_strings == ("Q:",)
    check_decoding("plain", base)
    with pytest.raises(ValueError, match=r"decoding\.plain\.stop_strings=.*--task\.generation_kwargs '{until: "):
        check_decoding("plain", DecodingParams(stop_strings=("Q:",)))


def test_a_response_is_cut_at_the_first_stop_sequence_that_stands_in_it() -> None:
    assert cut("a\n\nQ: b", stop_sequences({"until": ["Q:", "\n\n", ""]})) == "a"
    assert cut("a Q: b", stop_sequences({"until": "Q:"})) == "a "
    assert cut("abc", stop_sequences({"until": ["x"]})) == cut("abc", stop_sequences({})) == "abc"
