"""Flows of this project; each module is an entrypoint of prefect.yaml or serves those."""
