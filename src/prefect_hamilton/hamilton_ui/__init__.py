"""The Hamilton UI as a service: settings of its own on top of the package's, and its commands."""
