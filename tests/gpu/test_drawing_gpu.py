"""The drawing kernels on a CUDA device: the functions' draws, without a wait of the host or tables of the logits."""

import pytest
import torch

from dirl.diffusion.drawing import draw_rows, fused, kernels_agree, kernels_serve
from dirl.diffusion.sampling import candidates, scaled_logits, uniform
from dirl.types import DecodingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROWS, VOCABULARY = 1024, 151_936
BANNED = ((151_643, VOCABULARY),)
DIFFERENT = 1e-3
"""Share of draws whose number lies so close to a boundary of the CDF that roundings decide; some 1e-7 are expected."""


@pytest.mark.parametrize("decoding", [DecodingParams(), DecodingParams(temperature=0.7), DecodingParams(temperature=0)])
def test_the_kernels_draw_what_the_functions_draw(decoding: DecodingParams) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = (4 * torch.randn(ROWS, VOCABULARY, generator=generator, device="cuda")).bfloat16()
    columns = [torch.arange(ROWS, device="cuda") + first for first in (1 << 40, 100, 0)]
    assert kernels_serve(logits, decoding)
    made = fused(logits, *columns, BANNED, decoding)  # compiles, and copies the ranges of ids
    z = scaled_logits(logits, BANNED, decoding.temperature)
    tokens, logprobs, confidence = candidates(z, uniform(*columns), decoding)
    same = made.tokens == tokens
    assert made.finite.all() and (~same).float().mean() <= DIFFERENT
    torch.testing.assert_close(made.logprobs[same], logprobs[same], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.confidence[same], confidence[same], rtol=1e-5, atol=0)


def test_the_engines_see_that_the_kernels_draw_alike(recwarn: pytest.WarningsRecorder) -> None:
    for decoding in (DecodingParams(), DecodingParams(temperature=0)):
        for dtype in (torch.bfloat16, torch.float32):
            assert kernels_agree(torch.device("cuda", 0), dtype, VOCABULARY, BANNED, decoding)
    assert not recwarn.list


def test_drawing_neither_waits_nor_takes_memory_of_the_size_of_the_logits() -> None:
    logits = torch.randn(ROWS, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    columns = [torch.arange(ROWS, device="cuda")] * 3
    draw_rows(logits, *columns, BANNED, DecodingParams())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw_rows(logits, *columns, BANNED, DecodingParams())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < logits.nbytes / 50
