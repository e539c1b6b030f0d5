"""`python -m dirl`, the same as `dirl`."""

from dirl.cli.errors import console

console()
