"""The drawing kernels, interpreted on a CPU, beside the functions that say what is drawn: `python -m` this file.

A process of its own, for Triton decides when it is imported whether it interprets.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import warnings
from itertools import product

import torch
import triton
from triton import language as tl

from dirl.diffusion import drawing_kernels
from dirl.diffusion.drawing import Draws, draw_rows, fused, kernels_agree
from dirl.diffusion.sampling import uniform
from dirl.types import DecodingParams

DECODINGS = (
    DecodingParams(),
    DecodingParams(temperature=0.7, confidence="max"),
    DecodingParams(temperature=1.3),
    DecodingParams(temperature=0),
    DecodingParams(temperature=0, confidence="max"),
)
VOCABULARIES = (20, 2 * drawing_kernels.TILE + 9)
LOGPROB_ATOL = 4e-6
"""fp32: z less the largest, up to some 20, to 2^-23 of itself; the functions round z, then a probability."""
ROWS = 10


def main() -> None:
    """AssertionError where a draw differs."""
    warnings.simplefilter("ignore", RuntimeWarning)  # of NaN, which some rows have
    generator = torch.Generator().manual_seed(0)
    compare_uniform(generator)
    for number, (vocabulary, decoding) in enumerate(product(VOCABULARIES, DECODINGS)):
        dtype = torch.float32 if number % 5 == 1 else torch.bfloat16
        logits = (3 * torch.randn(ROWS, vocabulary + 3, generator=generator)).to(dtype)[:, :vocabulary]
        compare(logits, decoding, generator)
    warnings.simplefilter("error", UserWarning)
    for decoding in DECODINGS[1:4:2]:
        banned = ((0, 2), (VOCABULARIES[1] - 2, VOCABULARIES[1]))
        assert kernels_agree(torch.device("cpu"), torch.bfloat16, VOCABULARIES[1], banned, decoding)


def compare(logits: torch.Tensor, decoding: DecodingParams, generator: torch.Generator) -> None:
    vocabulary = logits.shape[1]
    logits[3, 5], logits[4, vocabulary - 1] = torch.nan, torch.inf
    logits[5, :] = logits[5, :1]  # all alike: of equals the leftmost is the best
    logits[6, 1:] = -1e4  # all but one without any probability, and that one is banned
    logits[6, 7], logits[6, 9] = 2.0, 1.0
    seeds = torch.randint(0, 1 << 62, (ROWS,), generator=generator)
    columns = seeds, torch.arange(ROWS), torch.arange(ROWS) % 4
    banned = ((0, 2), (vocabulary - 2, vocabulary))
    before = logits.clone()
    expected = draw_rows(logits, *columns, banned, decoding)
    assert_same(fused(logits, *columns, banned, decoding), expected, torch.ones(ROWS, dtype=torch.bool))
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "the logits were changed"
    wanted = torch.arange(ROWS) % 3 == 0
    some = fused(logits, *columns, banned, decoding, wanted)
    assert_same(some, expected, wanted)
    assert not some.tokens[~wanted].any() and some.finite[~wanted].all(), "rows that nobody wanted were drawn"
    assert_same(fused(logits, *columns, (), decoding, wanted), draw_rows(logits, *columns, (), decoding), wanted)


def assert_same(made: Draws, expected: Draws, rows: torch.Tensor) -> None:
    assert torch.equal(made.finite[rows], expected.finite[rows]) and not expected.finite[3:5].any()
    rows = rows & expected.finite
    assert torch.equal(made.tokens[rows], expected.tokens[rows])
    torch.testing.assert_close(made.logprobs[rows], expected.logprobs[rows], rtol=0, atol=LOGPROB_ATOL)
    torch.testing.assert_close(made.confidence[rows], expected.confidence[rows], rtol=LOGPROB_ATOL, atol=0)


@triton.jit
def uniforms(seeds, positions, forwards, out):
    row = tl.program_id(0)
    number = drawing_kernels._uniform(tl.load(seeds + row), tl.load(positions + row), tl.load(forwards + row))
    tl.store(out + row, number)


def compare_uniform(generator: torch.Generator) -> None:
    """Bit for bit."""
    seeds = torch.randint(-(1 << 63), (1 << 63) - 1, (16,), generator=generator)
    seeds[:3] = torch.tensor([0, (1 << 63) - 1, 1])
    positions, forwards = torch.arange(16) * 517, torch.arange(16) % 5
    out = torch.empty(16, dtype=torch.float64)
    uniforms[(16,)](seeds, positions, forwards, out)
    assert torch.equal(out, uniform(seeds, positions, forwards))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    print("every draw is the same")
