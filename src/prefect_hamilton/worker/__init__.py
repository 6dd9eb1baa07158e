"""Prefect's Kubernetes worker, which avoids duplicate, stuck and wrongly crashed flow runs."""
