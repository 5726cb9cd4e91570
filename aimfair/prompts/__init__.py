"""Prompts for every group, from word lists, vocabularies or language models."""
