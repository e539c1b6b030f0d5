"""The diffusion process: noising for SFT, decoding rules, replay of a step map. Pure functions."""
