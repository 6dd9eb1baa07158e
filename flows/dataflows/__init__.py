"""Hamilton dataflows of the flows.

Hamilton loads an extension for every library that it finds, and with it the library: Matplotlib,
scikit-learn and more, 110 MB. The dataflows here need the one for pandas.
"""

from hamilton import registry

if not registry.INITIALIZED:
    registry.INITIALIZED = True  # first, for the extension imports what would load all
    registry.load_extension("pandas")
