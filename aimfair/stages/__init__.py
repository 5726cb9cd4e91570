"""The stages of the pipeline, one file each: ``run(run)`` reads and writes the run directory by way of the domain."""
