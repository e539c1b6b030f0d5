"""Checkpoints: where in a run one was written, files that are whole or not there, what may be resumed with what."""
