"""DiRL: two-stage post-training (SFT, then DiPO) of block-diffusion language models."""

__version__ = "0.1.0"
