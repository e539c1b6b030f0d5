"""Shapes by name, or by a config.json, where a plan is made without the model."""

import json
from pathlib import Path

from transformers import AutoConfig

from dirl.models.families import check_served, families, family_of_type
from dirl.models.shape import ModelShape

SHAPES: dict[str, ModelShape] = {name: shape for family in families() for name, shape in family.named_shapes.items()}
"""Published models of this package's own families."""


def named_or_file(model: str) -> tuple[ModelShape, int | None]:
    """Shape and block size (None: the file has none) of one of `SHAPES` or of a config.json."""
    if model in SHAPES:
        return SHAPES[model], next(f.named_blocks.get(model, 4) for f in families() if model in f.named_shapes)
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"model_config={model!r} is no file here; name a config.json, or one of {', '.join(SHAPES)}")
    values = json.loads(path.read_text(encoding="utf-8"))
    check_served(values, model)
    kind = values.pop("model_type", None)
    family = family_of_type(kind, str(path))
    config = AutoConfig.for_model(kind, **values)
    family.check(config, str(path))
    return family.shape(config), values.get("block_size")
