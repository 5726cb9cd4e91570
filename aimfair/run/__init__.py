"""A run of the pipeline: its directory, and the records of its finished steps."""
