"""Shared by all parts: files, locks, errors, logs, progress, seeds, devices."""
