"""The source of the chart's values.yaml, its schema and the table of values."""
