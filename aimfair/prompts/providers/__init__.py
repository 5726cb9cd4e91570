"""Language models that write prompts: what they are asked, what of their replies is used, and who they are."""
