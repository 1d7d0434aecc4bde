"""The public contract: what requests and responses look like, a file for each subject."""
