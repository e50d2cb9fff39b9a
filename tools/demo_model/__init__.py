"""Builds the bundled toy model: synthetic text, tokenizer, training and exam (see README.md)."""
