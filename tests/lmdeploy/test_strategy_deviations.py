"""Where LMDeploy's strategy classes deviate from the decoding that the engines agree on, and that ours do not."""

import random
from types import SimpleNamespace

import pytest
import torch
from lmdeploy.pytorch import consts
from lmdeploy.pytorch.strategies.base.model_agent import StoppingCriteria
from lmdeploy.pytorch.strategies.dllm.model_agent import DLLMExtraInputs, DLLMStoppingCriteria
from tests.lmdeploy.strategy_oracle import make_sequence, strategy_factory
from torch import Tensor

from dirl.rollout.lmdeploy.changes import _EarliestStop, _ModelAgent, _Sampling
from dirl.rollout.lmdeploy.sequences import TracedSequences, Tracing
from dirl.rollout.response import response_end
from dirl.types import DecodingParams, GenerationRequest, ModelSpec

MASK, STOP, WORD = 9, 7, 1
SPEC = ModelSpec(4, mask_token_id=MASK, stop_token_ids=(STOP,), pad_token_id=0, vocab_size=10)
PADDING = -1
"""What LMDeploy fills up the stop words of the requests of a batch with."""


# --------------------------------------------------------------------------------- where a response ends


def both_rules(prompt_length: int, limit: int) -> tuple[DLLMStoppingCriteria, _EarliestStop]:
    """LMDeploy's stopping criteria and ours, as each makes them for one request."""
    decoding = DecodingParams(max_response_tokens=limit)
    factory = strategy_factory(SPEC, decoding)
    request = GenerationRequest("q", 0, (WORD,) * prompt_length, seed=0)
    sequences = [make_sequence(factory.build_sequence_strategy(), request, SPEC, decoding)]
    agents = factory.build_model_agent_strategy(), _ModelAgent(factory.dllm_config, MASK)
    return tuple(agent.make_stopping_criteria(sequences) for agent in agents)


def step(
    criteria: StoppingCriteria, tokens: Tensor, states: Tensor, start: Tensor, stop_words: list[list[int]]
) -> tuple[Tensor, Tensor, StoppingCriteria]:
    """One step of the criteria on blocks [N, B] that start at absolute positions [N]; N lists of stop words."""
    count, size = tokens.shape
    words = torch.tensor(stop_words).repeat_interleave(size, 0) if stop_words[0] else None
    inputs = SimpleNamespace(history_lengths=start, seq_length=torch.full((count,), size))
    extra = DLLMExtraInputs(states.flatten())
    return criteria.step(tokens.flatten(), words, inputs=inputs, extra_inputs=extra)


def end_of(criteria: StoppingCriteria, block: list[int], start: int) -> int | None:
    """Position in this complete block at which the response ends; None: it goes on."""
    tokens = torch.tensor([block])
    stopped, position, _ = step(criteria, tokens, unmasked(tokens), torch.tensor([start]), [[STOP]])
    return int(position) if stopped else None


def unmasked(tokens: Tensor) -> Tensor:
    return torch.full_like(tokens, consts.DLLM_UNMASKED, dtype=torch.uint8)


def test_lmdeploy_misses_a_stop_token_beside_the_prompts_tail_and_the_changed_rule_finds_it() -> None:
    block = [WORD, WORD, STOP, WORD]  # the last two of 6 prompt tokens, then the response
    lmdeploys, ours = both_rules(prompt_length=6, limit=20)
    assert end_of(lmdeploys, block, start=4) is None
    assert end_of(ours, block, start=4) == 2


def test_neither_rule_stops_at_a_stop_token_of_the_prompt() -> None:
    block = [WORD, STOP, WORD, WORD]
    for rule in both_rules(prompt_length=6, limit=20):
        assert end_of(rule, block, start=4) is None


def test_for_lmdeploy_the_limit_beats_an_earlier_stop_token_and_for_the_changed_rule_the_earliest_wins() -> None:
    block = [WORD, STOP, WORD, WORD]
    lmdeploys, ours = both_rules(prompt_length=4, limit=3)
    assert end_of(lmdeploys, block, start=4) == 2
    assert end_of(ours, block, start=4) == 1


@pytest.mark.parametrize("position", [2, 3])
def test_at_or_after_the_limit_a_stop_token_changes_nothing(position: int) -> None:
    block = [STOP if i == position else WORD for i in range(4)]
    for rule in both_rules(prompt_length=4, limit=3):
        assert end_of(rule, block, start=4) == 2


def test_lmdeploy_takes_padding_for_a_stop_word_beside_a_prompts_tail_and_the_changed_rule_does_not() -> None:
    """LMDeploy blanks what it ignores with the value that it pads the shorter list of stop words with."""
    tokens = torch.tensor([[WORD, WORD, WORD, WORD]] * 2)
    words = [[STOP, PADDING], [STOP, STOP + 1]]
    found = []
    for rule in both_rules(prompt_length=6, limit=20):
        pair = rule.merge(rule.clone())
        stopped, _, _ = step(pair, tokens, unmasked(tokens), torch.tensor([4, 4]), words)
        found.append(stopped.tolist())
    assert found == [[True, False], [False, False]]


def test_the_two_rules_agree_where_lmdeploy_does_not_deviate() -> None:
    choose, seen = random.Random(0), {"goes on": 0, "ends": 0, "incomplete": 0, "missed": 0, "limit first": 0}
    for _ in range(400):
        size, stop_words = choose.choice([1, 2, 4, 8]), choose.sample(range(MASK), choose.randrange(4))
        rows = [random_row(choose, size) for _ in range(choose.randrange(1, 6))]
        tokens, states = torch.tensor([r.tokens for r in rows]), torch.tensor([r.states for r in rows]).byte()
        start, left = torch.tensor([r.start for r in rows]), torch.tensor([r.left for r in rows])
        padded_ends = torch.tensor([-(-r.prompt // size) * size for r in rows])
        prompt_ends = torch.tensor([r.prompt for r in rows])
        lmdeploys = DLLMStoppingCriteria(left.clone(), padded_ends)
        ours = _EarliestStop(left.clone(), prompt_ends)
        words = [stop_words] * len(rows)
        stopped, position, after = step(lmdeploys, tokens, states, start, words)
        stopped_too, position_too, after_too = step(ours, tokens, states, start, words)
        for i, row in enumerate(rows):
            kind = row.kind(stop_words)
            seen[kind] += 1
            if kind in ("missed", "limit first"):
                assert stopped_too[i] and (not stopped[i] or position_too[i] < position[i]), row
                continue
            assert bool(stopped[i]) == bool(stopped_too[i]) == (kind == "ends"), row
            if kind == "ends":
                assert position[i] == position_too[i], row
            else:
                assert after.num_appendable_ids[i] == after_too.num_appendable_ids[i], row
    assert min(seen.values()) >= 30, seen


def test_lmdeploy_is_told_to_stop_in_the_block_and_at_the_place_where_a_response_ends() -> None:
    choose, reasons = random.Random(0), {"stop": 0, "length": 0}
    for _ in range(200):
        prompt, limit = choose.randrange(1, 12), choose.randrange(1, 14)
        _, ours = both_rules(prompt, limit)
        response: list[int] = []
        for start in range(prompt // 4 * 4, prompt + limit + 4, 4):
            of_prompt = max(prompt - start, 0)
            block = [choose.choice([WORD] * 8 + [STOP]) for _ in range(4)]
            response += block[of_prompt:]
            tokens = torch.tensor([block])
            stopped, position, ours = step(ours, tokens, unmasked(tokens), torch.tensor([start]), [[STOP]])
            end = response_end(response, SPEC.stop_token_ids, limit)
            assert bool(stopped) == (end is not None), (prompt, limit, response)
            if end is not None:
                assert start + int(position) + 1 - prompt == end[0], (prompt, limit, response)
                reasons[end[1]] += 1
                break
        else:
            raise AssertionError("no response is longer than its limit")
    assert min(reasons.values()) >= 30, reasons


class Row(SimpleNamespace):
    """A block of a running sequence: `prompt` tokens long its prompt, `left` tokens to the limit from `start` on."""

    def kind(self, stop_words: list[int]) -> str:
        if set(self.states) != {consts.DLLM_UNMASKED}:
            return "incomplete"
        response = range(max(self.prompt - self.start, 0), len(self.tokens))
        stop = next((i for i in response if self.tokens[i] in stop_words), None)
        limited = self.left <= len(self.tokens)
        if stop is None or stop >= self.left:
            return "ends" if limited else "goes on"
        if limited and stop < self.left - 1:
            return "limit first"
        return "missed" if not limited and self.prompt > self.start else "ends"


def random_row(choose: random.Random, size: int) -> Row:
    prompt = choose.randrange(1, 3 * size)
    start = (prompt // size + choose.choice([0, 0, 1, 2])) * size
    head = max(prompt - start, 0)
    tokens = [choose.randrange(MASK) for _ in range(size)]
    states = [choose.choice([[consts.DLLM_UNMASKED] * size] * 3 + [[consts.DLLM_CACHED] * size, None])][0]
    if states is None:
        states = [consts.DLLM_UNMASKED if i < head else choose.randrange(2) for i in range(size - 1)]
        states.append(consts.DLLM_MASKED)
    tokens = [MASK if s == consts.DLLM_MASKED else t for t, s in zip(tokens, states, strict=True)]
    return Row(prompt=prompt, start=start, tokens=tokens, states=states, left=head + choose.randrange(1, 2 * size + 1))


# ------------------------------------------------------------------------------------- whose seed is whose


def test_lmdeploy_gives_a_groups_rows_one_anothers_seeds() -> None:
    """Rows 4i to 4i + 3 are sequence i's; equal prompts with equal rows of seeds give equal samples: 2, not 8."""
    decoding = DecodingParams()
    factory = strategy_factory(SPEC, decoding)
    group = [GenerationRequest("q", i, (WORD,) * 5, seed=100 + i) for i in range(8)]
    sequences = [make_sequence(factory.build_sequence_strategy(), r, SPEC, decoding) for r in group]
    seeds = factory.build_sampling_strategy().make_sampling_inputs(sequences).random_seeds
    even, odd = [100, 101, 102, 103], [104, 105, 106, 107]
    assert seeds.view(8, 4).tolist() == [even, odd] * 4


def test_the_changed_sampling_gives_every_row_the_seed_and_forward_count_of_its_sequence() -> None:
    decoding = DecodingParams()
    strategy = TracedSequences(SPEC.block_size, MASK, Tracing(SPEC))
    group = [GenerationRequest("q", i, (WORD,) * 5, seed=(1 << 62) + i) for i in range(8)]
    sequences = [make_sequence(strategy, r, SPEC, decoding) for r in group]
    for i, sequence in enumerate(sequences):
        sequence.forward = i % 3
    inputs = _Sampling(SPEC.pad_token_id, SPEC.block_size).make_sampling_inputs(sequences)
    assert inputs.random_seeds.view(8, 4).tolist() == [[(1 << 62) + i] * 4 for i in range(8)]
    assert inputs.random_offsets.view(8, 4).tolist() == [[i % 3] * 4 for i in range(8)]
    assert inputs.stop_words.tolist() == [[STOP]] * 32
