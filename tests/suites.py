"""Rows in the forms of the published suites, written for the tests, and a model that knows their characters."""

import string
from pathlib import Path

from dirl.models import NewModel

FOLDER = Path(__file__).parent / "fixtures" / "suites"
ROWS = {path.stem: str(path) for path in sorted(FOLDER.glob("*.jsonl"))}
"""File of each suite by its name; the answers in them are worked by hand."""
ALPHABET = string.ascii_letters + string.digits + string.punctuation + " \n"


def printable_model() -> NewModel:
    return NewModel(alphabet=ALPHABET, hidden_size=32, num_hidden_layers=1, head_dim=8, block_size=4, seed=1)
