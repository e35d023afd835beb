"""``python -m gncompile``."""

import sys

from .cli import main

sys.exit(main())
