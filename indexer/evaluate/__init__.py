"""Evaluation: what an encoder is worth on labelled or captioned pictures, and which of several is worth more."""
