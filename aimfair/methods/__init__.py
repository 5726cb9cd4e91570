"""Methods: what each trains, on which images, and with which optimizer."""
