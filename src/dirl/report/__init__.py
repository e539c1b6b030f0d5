"""Reports of a run: learning curves, and how one answer was denoised, as pictures and in the terminal."""
