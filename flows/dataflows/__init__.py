"""Hamilton dataflows of the flows.

On the command line too, only the extensions of Hamilton that a dataflow needs are loaded.
"""

from prefect_hamilton import extensions

extensions.load_lazily()
