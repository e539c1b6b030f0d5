"""From files to tokens: rows read and checked, put into the chat template, and encoded."""
