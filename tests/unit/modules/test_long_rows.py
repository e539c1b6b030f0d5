"""A row over the budget is told of, and not once for every step."""

import warnings

import numpy as np

from dirl.modules.backward import say_if_too_long
from dirl.packing.pieces import clean
from dirl.packing.rows import Branch, join


def test_a_row_over_the_budget_is_told_of_where_none_as_long_was_before() -> None:
    rows = {n: join([[Branch(1, clean(np.zeros((n, 4), dtype=np.int64), 0, trajectory=0))]]) for n in range(1, 6)}
    told, said = 0, []
    for blocks in (2, 4, 3, 4, 5, 1):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            told = say_if_too_long([rows[1], rows[blocks]], 8, told)
        said.append([str(w.message).partition(",")[0] for w in found])
    assert said == [[], ["a packed row has 16 tokens"], [], [], ["a packed row has 20 tokens"], []]
    assert say_if_too_long([], 8, told) == told == 20
