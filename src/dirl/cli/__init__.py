"""The command line, `dirl X` or `lightning run X`: one file for each command that is more than a function."""
