"""Headers of requests to the Prefect API, without an import of Prefect."""

EXPECTED_STATE = "Prefect-Hamilton-Expected-State"
"""State that the sender of a proposal saw. This project's server refuses it for another one."""

ATTEMPT = "Prefect-Hamilton-Attempt"
"""Flow run that the sender executes, a colon, and the attempt: the state that took the run up.

This project's server refuses what a pod proposes for its run when another pod has the run.
"""
