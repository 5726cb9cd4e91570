"""One run of the pipeline: its directory, and what a person sees and does while it goes on."""
