"""`python -m saaug_keras.cli`: the same as `saaug`."""

import sys

from saaug_keras.cli import main

sys.exit(main())
