"""Trains small CLIP models on drawn pictures, measures them, and exports them as folders that open_clip loads."""
