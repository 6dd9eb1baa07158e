"""Imported by the fork server only: a signal to the worker's process group must not end it.

Without the fork server, nobody learns how the flow runs end that it has forked. It ends by itself
when the worker has.
"""

import os

os.setsid()
