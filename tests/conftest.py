"""Settings of all tests."""

import os

os.environ["DVC_NO_ANALYTICS"] = "1"  # no test uses the network; repositories made here have DVC's defaults
