"""Prefect 3 flows with Apache Hamilton dataflows.

Flows import `dataflow` to execute dataflows, `warehouse` to store rows, `artifacts`, `metrics`,
`command_line`, and `testing` for their tests. `dataflow` uses `tracking`, `graphs` and `masking`.
The other subpackages are the programs of the images.
"""
