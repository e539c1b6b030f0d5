"""Reports: learning curves and one denoised answer as pictures and in the terminal, trajectories as a page."""
