"""The reliability programme over snapshots, swaps and the process; `make trust` writes its figures down."""
