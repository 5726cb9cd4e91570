"""Prompts of every group: from word lists, vocabularies and language models."""
