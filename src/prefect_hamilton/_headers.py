"""Headers of requests to the Prefect API, without an import of Prefect."""

EXPECTED_STATE = "Prefect-Hamilton-Expected-State"
"""State that the sender of a proposal saw. This project's server refuses it for another one."""
