"""Imported by a flow from its own folder."""

WORD = "beside"
