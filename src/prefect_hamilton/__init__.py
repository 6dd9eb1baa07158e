"""Prefect 3 flows with Apache Hamilton dataflows: what flows import and what the images run."""
