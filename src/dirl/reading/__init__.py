"""The way from files to tokens: rows are read and checked, put into the chat template, and encoded."""
