"""Lets tests of every folder import what several of them share, such as program_oracle."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
