"""Flows that the platform deploys for any repository; entrypoints are module paths."""
