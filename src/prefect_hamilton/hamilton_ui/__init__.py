"""The Hamilton UI as a service: settings on top of those of its package, and its commands."""
