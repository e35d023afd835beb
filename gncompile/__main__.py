"""``python -m gncompile``."""

import sys

from .app.cli import main

sys.exit(main())
