"""Tensors between processes: buckets keep every bit, and a group of two notices when the other is gone."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dirl.rollout.remote.pair_group import PairGroup
from dirl.rollout.remote.relay_store import RelayStore
from dirl.rollout.remote.weight_transfer import Staging, TensorEntry, buckets, entries_of, flat_bytes, unflatten

CPU = torch.device("cpu")


def some_weights() -> list[tuple[str, Tensor]]:
    """All dtypes, odd lengths, scalars, empty and strided tensors, one larger than the others together."""
    torch.manual_seed(0)
    return [
        ("odd", torch.randn(7, 3).bfloat16()),
        ("double", torch.randn(5, dtype=torch.float64)),
        ("scalar", torch.tensor(1.5)),
        ("empty", torch.zeros(0, 4)),
        ("half", torch.randn(3, 1, 5).half()),
        ("strided", torch.randn(6, 8).t()),
        ("large", torch.randn(40, 40)),
        ("last", torch.randn(9)),
    ]


@pytest.mark.parametrize("limit", [1, 100, 300, 10**6])
def test_buckets_hold_all_tensors_in_order_within_the_limit(limit: int) -> None:
    made = list(buckets(iter(some_weights()), limit))
    assert [name for bucket in made for name, _ in bucket] == [name for name, _ in some_weights()]
    for bucket in made:
        assert len(bucket) == 1 or sum(v.nbytes for _, v in bucket) <= limit
    assert (len(made) == 1) == (limit == 10**6)


def test_only_one_bucket_of_the_weights_is_asked_for_at_a_time() -> None:
    asked = 0

    def counted() -> Iterator[tuple[str, Tensor]]:
        nonlocal asked
        for named in [(str(i), torch.zeros(100)) for i in range(20)]:
            asked += 1
            yield named

    made = buckets(counted(), 900)
    next(made)
    assert asked == 3, "two of the bucket, and the one that did not fit in"


@pytest.mark.parametrize("limit", [1, 300, 10**6])
def test_every_bit_of_every_tensor_comes_back(limit: int) -> None:
    found = []
    staging = Staging()
    for bucket in buckets(some_weights(), limit):
        flat, entries = staging.flatten(bucket), entries_of(bucket)
        assert flat.dtype == torch.uint8 and len(flat) == flat_bytes(entries)
        found += unflatten(flat.clone(), entries)
    for (name, value), (wanted_name, wanted) in zip(found, some_weights(), strict=True):
        assert (name, value.dtype, value.shape) == (wanted_name, wanted.dtype, wanted.shape)
        assert torch.equal(value, wanted)


def test_a_flat_bucket_is_a_copy() -> None:
    value = torch.zeros(4)
    flat = Staging().flatten([("a", value)])
    value.fill_(1)
    assert not flat.any()


def test_a_dtype_that_cannot_be_pushed_is_named() -> None:
    with pytest.raises(ValueError, match=r"weight 'a' has dtype complex64: only .*bfloat16"):
        entries_of([("a", torch.zeros(3, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="dtype __class__"):
        TensorEntry("a", "__class__", (1,))


def pair(timeout_s: float = 10.0) -> tuple[PairGroup, PairGroup]:
    """Sender and receiver, both in this process."""
    there = RelayStore(lambda key, value: here.arrive(key, value), timeout_s)
    here = RelayStore(there.arrive, timeout_s)
    made: list[PairGroup] = []
    server = threading.Thread(target=lambda: made.append(PairGroup(there, 1, "gloo", CPU, timeout_s)))
    server.start()
    sender = PairGroup(here, 0, "gloo", CPU, timeout_s)
    server.join()
    return sender, made[0]


def test_bytes_cross_a_group_of_two_unchanged() -> None:
    sender, receiver = pair()
    sent = [torch.randint(0, 256, (n,), dtype=torch.uint8) for n in (16, 1 << 20, 48)]
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.extend(receiver.receive(len(flat)) for flat in sent))
    thread.start()
    for flat in sent:
        sender.send(flat)
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, sent, strict=True))
    sender.close()
    receiver.close()


def test_closing_one_side_ends_the_wait_of_the_other() -> None:
    sender, receiver = pair(timeout_s=60)
    raised: list[Exception] = []

    def wait() -> None:
        try:
            receiver.receive(16)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    sender.close()
    thread.join(10)
    assert raised
    with pytest.raises(ConnectionError, match="closed"):
        sender.send(torch.zeros(16, dtype=torch.uint8))


def test_a_wait_has_a_limit() -> None:
    sender, receiver = pair(timeout_s=0.5)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"500ms|Timed out"):
        receiver.receive(16)
    assert time.monotonic() - started < 5
    sender.close()


def test_two_pairs_do_not_meet() -> None:
    pairs = [pair(), pair()]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: found.update({i: r.receive(4)})) for i, (_, r) in enumerate(pairs)
    ]
    for thread in threads:
        thread.start()
    for i, (sender, _) in reversed(list(enumerate(pairs))):
        sender.send(torch.full((4,), i, dtype=torch.uint8))
    for thread in threads:
        thread.join()
    assert {i: value.tolist() for i, value in found.items()} == {0: [0] * 4, 1: [1] * 4}
