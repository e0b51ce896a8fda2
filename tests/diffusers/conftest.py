"""The library diffusers needs Python 3.11."""

import sys

collect_ignore_glob = [] if sys.version_info >= (3, 11) else ["test_*.py"]
