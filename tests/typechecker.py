"""What holds annotations against values in the tests: beartype, to which an int is a float too, as to mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
