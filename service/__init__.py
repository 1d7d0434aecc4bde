"""Answers searches and classifications over HTTP from the published snapshot, and follows the next one."""
