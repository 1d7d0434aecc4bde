"""Programmes run by hand: what they measure is recorded in the READMEs."""
