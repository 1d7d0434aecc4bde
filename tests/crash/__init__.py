"""The crash programme: builds are killed, their calls to the disk fail, and no picture may be lost, doubled or torn.

`make crash-test` (`python -m tests.crash`) runs all of it in minutes; `tests/indexer/test_crash.py` a part in seconds.
"""
