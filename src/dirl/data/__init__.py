"""The two DataModules: from conversations and prompts to batches."""
