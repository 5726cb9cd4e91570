"""The stages of the pipeline, one file each; ``pipeline.py`` has their registry."""
