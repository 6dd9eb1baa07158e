"""Prometheus metrics of flow runs, work pools and deployments of a Prefect API.

`python -m prefect_hamilton.exporter` listens to Prefect's event stream, and counts. What no event
says (runs that have not ended, heartbeats, slots) comes from a few requests per refresh, whose
number does not depend on the number of runs. A scrape sends no request.
"""
