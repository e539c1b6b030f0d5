"""Drawing for the engines: in any number of pieces the same, and by the kernels what the functions draw."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dirl.diffusion import drawing
from dirl.diffusion.drawing import draw_rows, kernels_serve
from dirl.diffusion.sampling import candidates, scaled_logits, uniform
from dirl.types import DecodingParams

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: it comes with torch for CUDA and with dirl[lmdeploy]"
)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("decoding", [DecodingParams(), DecodingParams(top_k=3), DecodingParams(temperature=0)])
def test_rows_are_drawn_alike_in_pieces_and_at_once(decoding: DecodingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits[2, 3] = torch.nan
    columns = torch.arange(7) + 100, torch.arange(7), torch.arange(7) % 2
    whole = draw_rows(logits, *columns, ((4, 6),), decoding)
    monkeypatch.setattr(drawing, "ROWS_BYTES", 4 * 20 * 2)
    parts = draw_rows(logits, *columns, ((4, 6),), decoding)
    for name in ("tokens", "logprobs", "confidence", "finite"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    assert whole.finite.tolist() == [i != 2 for i in range(7)]
    z = scaled_logits(logits, ((4, 6),), decoding.temperature)
    tokens, logprobs, confidence = candidates(z, uniform(*columns), decoding)
    good = whole.finite
    assert torch.equal(tokens[good], whole.tokens[good]) and torch.equal(logprobs[good], whole.logprobs[good])
    assert torch.equal(confidence[good], whole.confidence[good])


def test_the_kernels_take_no_cuts_and_no_cpu() -> None:
    class Cuda(torch.Tensor):
        is_cuda = True

    there = torch.zeros(2, 3).as_subclass(Cuda)
    for decoding in (DecodingParams(top_k=2), DecodingParams(top_p=0.5), DecodingParams(min_p=0.1)):
        assert not kernels_serve(there, decoding)
    assert not kernels_serve(torch.zeros(2, 3), DecodingParams())
    assert not kernels_serve(there.double(), DecodingParams())
    assert not kernels_serve(there[:0], DecodingParams())
    assert kernels_serve(there, DecodingParams()) == (find_spec("triton") is not None)


@needs_triton
def test_the_kernels_interpreted_draw_what_the_functions_draw() -> None:
    command = [sys.executable, "-m", "tests.unit.diffusion.interpreted_drawing"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "every draw is the same" in run.stdout


@needs_triton
def test_the_kernels_compile_for_sm_90(tmp_path: Path) -> None:
    """Ahead of time, without a GPU: by Triton's compiler and the ptxas that it brings along."""
    command = [sys.executable, "-m", "tests.unit.diffusion.compiled_drawing"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("without a spilled register") == 4


# --------------------------------------------------------------------------------- who draws


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels seem to serve; whoever draws in their place is noted."""
    made: list[str] = []

    def kernels(*given: object) -> drawing.Draws:
        made.append("kernel")
        return drawing.by_functions(*given[:6])

    monkeypatch.setattr(drawing, "kernels_serve", lambda logits, decoding: True)
    monkeypatch.setattr(drawing, "fused", kernels)
    drawing.kernels_agree.cache_clear()
    yield made
    drawing.kernels_agree.cache_clear()


def draw_twice(who: drawing.Drawing, temperature: float = 1.0) -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        draw_rows(logits, *[torch.arange(3)] * 3, ((4, 6),), DecodingParams(temperature=temperature), drawing=who)


@pytest.mark.parametrize(("who", "draws"), [("auto", 3), ("kernel", 2), ("torch", 0)])
def test_the_kernels_draw_if_they_are_asked_for_or_have_been_tried_once(
    as_on_a_gpu: list[str], who: drawing.Drawing, draws: int
) -> None:
    draw_twice(who)
    assert as_on_a_gpu == ["kernel"] * draws
    draw_twice(who, temperature=0)  # other kernels, so they are tried too
    assert as_on_a_gpu == ["kernel"] * 2 * draws


WRONG = {
    "2 of 15 tokens": lambda draws: replace(draws, tokens=torch.where(torch.arange(16) < 2, 19, draws.tokens)),
    "logprobs differ by 0.01": lambda draws: replace(draws, logprobs=draws.logprobs - 0.01),
    "confidence differ by": lambda draws: replace(draws, confidence=0.9 * draws.confidence),
    "which logits are finite": lambda draws: replace(draws, finite=torch.ones(16, dtype=torch.bool)),
    "RuntimeError: no such instruction": None,
}


@pytest.mark.parametrize("said", WRONG)
def test_kernels_that_draw_otherwise_are_not_used_and_that_is_said_once(
    as_on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def kernels(*given: object) -> drawing.Draws:
        as_on_a_gpu.append("kernel")
        if WRONG[said] is None:
            raise RuntimeError("no such instruction")
        return WRONG[said](drawing.by_functions(*given[:6]))

    monkeypatch.setattr(drawing, "fused", kernels)
    with pytest.warns(UserWarning, match=f"torch's functions are.*{said}") as warned:
        draw_twice("auto")
    assert as_on_a_gpu == ["kernel"] and len(warned) == 1


def test_what_cannot_draw_here_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"engine\.drawing='fast': use auto, kernel or torch"):
        drawing.check_drawing("fast")
    with pytest.raises(ValueError, match=r"engine\.drawing='kernel': .*the engine works on 'cpu'; use auto or torch"):
        drawing.check_drawing("kernel", torch.device("cpu"))
    drawing.check_drawing("torch", torch.device("cpu"))
