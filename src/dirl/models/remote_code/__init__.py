"""Files that every exported model carries, for plain transformers with `trust_remote_code=True`. Nothing here imports
dirl, and nothing of dirl imports them: `dirl.models.families.qwen3` does the same within this package."""
