"""What a person runs: each module has `--help`."""
