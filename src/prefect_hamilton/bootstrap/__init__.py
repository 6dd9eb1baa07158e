"""Brings a Prefect server and a Hamilton UI to the state that a file describes."""
