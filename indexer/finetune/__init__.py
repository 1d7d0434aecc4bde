"""Training: the retrieval-optimised recipes for any open_clip model, and the base of the demo model."""
