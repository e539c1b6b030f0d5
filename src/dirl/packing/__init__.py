"""From trajectories and conversations to rows: division, filling, and the flat tensors of a batch."""
