"""LMDeploy as rollout engine, in the process of the trainer."""
