"""Prefect 3 flows with Apache Hamilton dataflows.

What flows import: `dataflow` to execute dataflows, `warehouse` to store rows, `artifacts`,
`metrics`, `command_line`, and `testing` for their tests. `tracking`, `graphs` and `masking` are
what `dataflow` is made of. The other subpackages are the programs of the images.
"""
