"""Lets tests of this folder import what several of them share, such as calls."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
