"""What holds for all tests."""

import os

os.environ["DVC_NO_ANALYTICS"] = "1"  # no test talks to the world; repositories made here have DVC's defaults
