"""The torch engine's slots, and how often its host waits for the device."""

from unittest.mock import patch

import pytest
import torch
from tests.tiny import TinyModel, prompt
from torch import Tensor

from dirl.models import SDARConfig
from dirl.rollout import TorchEngine
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.rollout.torch.stripped import StrippedDecoder
from dirl.types import DecodingParams, GenerationRequest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cache_keeps_what_it_is_told_where_it_is_told() -> None:
    config = SDARConfig(num_hidden_layers=2, num_key_value_heads=1, head_dim=2, num_attention_heads=2)
    cache = SlotCache(config, slots=5, length=6, device="cpu", dtype=torch.float32)
    cache.keys.copy_(torch.rand(cache.keys.shape))
    cache.values.copy_(torch.rand(cache.values.shape))
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.decode(torch.tensor([[2, 3]] * 5), span=4, more=torch.zeros(0, dtype=torch.long))
    cache.keep([0, 4, 2])  # the second and fourth have finished
    for slot, source in enumerate([0, 4, 2]):
        assert cache.keys[:, slot, :, :4].equal(keys[:, source, :, :4])
        assert cache.values[:, slot, :, :4].equal(values[:, source, :, :4])


def decode(count: int, slots: int, decoding: DecodingParams) -> tuple[list[int], list[list[int]], TorchEngine]:
    """Sample indices in the order of the answers, and what `keep` was told."""
    description = TinyModel(4).describe()
    engine, told = TorchEngine(slots), []
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(TinyModel(4).build(description.config).named_parameters(), 0)
    keep = SlotCache.keep

    def listen(self: SlotCache, kept: list[int]) -> None:
        told.append(kept)
        keep(self, kept)

    requests = [GenerationRequest("p", i, prompt(5 + i % 3, i), seed=i) for i in range(count)]
    with patch.object(SlotCache, "keep", listen):
        order = [t.sample_index for t in engine.generate(requests, decoding)]
    return order, told, engine


def test_for_each_finished_sequence_at_most_one_other_moves() -> None:
    order, told, _ = decode(40, 16, DecodingParams(threshold=0.5, max_response_tokens=40))
    assert sorted(order) == list(range(40)) and order != sorted(order)
    moves = [sum(slot != source for slot, source in enumerate(kept)) for kept in told]
    assert 0 < sum(moves) < 40


def test_sequences_that_finish_together_come_in_the_order_of_their_requests() -> None:
    """All of a batch take as many forwards, and those that follow fill its slots in their order."""
    order, _, _ = decode(12, 4, DecodingParams(strategy="sequential", denoising_steps=1, max_response_tokens=1))
    assert order == list(range(12))


def test_the_host_asks_the_device_once_in_a_step() -> None:
    copies = 0
    cpu = Tensor.cpu

    def count(self: Tensor) -> Tensor:
        nonlocal copies
        copies += 1
        return cpu(self)

    with patch.object(Tensor, "cpu", count):
        *_, engine = decode(8, 8, DecodingParams(threshold=0.9, max_response_tokens=30))
    assert 0 < copies <= engine.forwards


@pytest.mark.parametrize("forward", ["auto", "modules"])
def test_the_prompt_of_a_group_is_computed_once_however_few_slots_there_are(forward: str) -> None:
    description = TinyModel(4).describe()
    requests = [
        GenerationRequest(f"p{g}", i, prompt(9 + 4 * g, g), seed=10 * g + i) for g in range(3) for i in range(6)
    ]
    decoding = DecodingParams(threshold=0.5, max_response_tokens=30)
    found, prefill = {}, SlotCache.prefill
    for slots in (4, 64):
        prompts: list[int] = []

        def listen(self: SlotCache, own: Tensor, of_slot: Tensor, prompts: list[int] = prompts) -> None:
            prompts.append(len(of_slot.unique()))
            prefill(self, own, of_slot)

        engine = TorchEngine(slots, forward=forward)
        engine.setup(description.config, description.tokenizer, description.spec, "cpu")
        engine.update_weights(TinyModel(4).build(description.config).named_parameters(), 0)
        with patch.object(SlotCache, "prefill", listen):
            found[slots] = {t.key: (t.response_ids, t.step_map) for t in engine.generate(requests, decoding)}
        assert sum(prompts) == 3
    assert found[4] == found[64]


PREFILLS = {1 << 12: [(7, 28)], 24: [(1, 28), (1, 16), (1, 12), (2, 12), (2, 8)]}
"""Prompts and their tokens, forward by forward, for so many tokens at a time."""


def test_prompts_go_through_the_model_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of like lengths together; one that is longer than that alone, one without a whole block not at all."""
    description = TinyModel(4).describe()
    lengths = (3, 9, 8, 30, 4, 17, 12, 13)
    requests = [GenerationRequest(f"p{i}", 0, prompt(length, i), seed=i) for i, length in enumerate(lengths)]
    found = {}
    for tokens in (1 << 12, 24):
        monkeypatch.setattr("dirl.rollout.torch.engine.PREFILL_TOKENS", tokens)
        engine, shapes = TorchEngine(64), []
        engine.setup(description.config, description.tokenizer, description.spec, "cpu")
        engine.update_weights(TinyModel(4).build(description.config).named_parameters(), 0)
        decoder = StrippedDecoder.__call__

        def listen(self: StrippedDecoder, ids: Tensor, *args: object, shapes: list = shapes, call=decoder) -> Tensor:
            shapes.append(tuple(ids.shape))
            return call(self, ids, *args)

        monkeypatch.setattr(StrippedDecoder, "__call__", listen)
        asked: list[int] = []
        engine.still_wanted = lambda asked=asked, shapes=shapes: asked.append(len(shapes))
        found[tokens] = {
            t.key: t.response_ids for t in engine.generate(requests, DecodingParams(max_response_tokens=9))
        }
        monkeypatch.setattr(StrippedDecoder, "__call__", decoder)
        assert shapes[: len(PREFILLS[tokens])] == PREFILLS[tokens]
        assert asked == [*range(len(shapes))], "before every forward"
        assert engine.heartbeat == len(shapes), "a long prefill is no silence"
    assert found[1 << 12] == found[24]
