"""An autoregressive toy made a block-diffusion model, against one from scratch, at equal training tokens.

python -m benchmarks.adapt makes it. Every run is kept and made once, so it goes on where it stopped.
"""
