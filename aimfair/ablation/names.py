"""The ablations by name; no heavy import, as the command line shows them."""

ABLATIONS = {
    "density": "one method at several densities, each at several learning rates if asked",
    "criteria": "criterion x rule x granularity at one share of the weights",
    "bias-ratio": "the bias of the biased synthetic set",
    "images": "how many balanced synthetic images",
    "prompts": "plain against contextual prompts",
    "selective": "selective against full fine-tuning: metrics, time and memory",
    "blocks": "the method with one block of the model frozen at a time",
    "premise": "does sensitivity tell what tuning a block alone does to equalized odds",
}
"""Name -> what it varies. Each is a module of this package, with _ for -."""
