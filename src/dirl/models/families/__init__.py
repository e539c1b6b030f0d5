"""Model families, one file each, and which of them serves a model."""

from dirl.models.families.base import ModelFamily
from dirl.models.families.code import RemoteCode
from dirl.models.families.parts import Parts
from dirl.models.families.registry import (
    check_served,
    families,
    family_of,
    family_of_type,
    register_family,
    register_models,
)

__all__ = [
    "ModelFamily",
    "Parts",
    "RemoteCode",
    "check_served",
    "families",
    "family_of",
    "family_of_type",
    "register_family",
    "register_models",
]
