"""`python -m dirl.cli`, the same as `dirl`."""

from dirl.cli.errors import console

console()
