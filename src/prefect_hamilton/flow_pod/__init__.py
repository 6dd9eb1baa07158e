"""Runs one flow run in a pod, as `prefect flow-run execute` does, with one start of Python.

`prefect flow-run execute` is a supervisor that starts a second interpreter for the engine, which
imports Prefect again: most of the time between a pod's start and the flow's first line. Here the
supervisor imports Prefect once and forks the engine. The supervision itself is Prefect's.
"""

JSON_FORMATTER = "PREFECT_LOGGING_FORMATTERS_JSON_CLASS"
"""Variable that overrides the class of Prefect's formatter `json`."""
