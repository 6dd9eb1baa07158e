"""What the chart's values.yaml, its schema and the reference of values are generated from."""
