"""Prefect's Kubernetes worker, with what keeps a flow run from being doubled, stuck or crashed."""
