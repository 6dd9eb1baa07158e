"""Hamilton dataflows: modules of pure functions, one function a node."""
