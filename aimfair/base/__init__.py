"""What every part stands on: files, errors, logs, seeds, devices."""
