"""The diffusion process: noising for SFT, decoding rules, the views of a step map. Pure functions."""
