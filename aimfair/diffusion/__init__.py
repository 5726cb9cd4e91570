"""Text-to-image models: families, engines that run them, and the sampler."""
