"""Starts the mock agent from its compiled module.

Python compiles the file that it is given at each start, and the tests start thousands of agents.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from mock_agent import main  # type: ignore[import-not-found]

del sys.path[0]

if __name__ == "__main__":
    main()
