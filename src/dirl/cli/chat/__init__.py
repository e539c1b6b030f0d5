"""The command `chat`: its conversation, its slash commands, what it shows."""
