"""Lets tests of this folder import what several of them share, such as finetuning_networks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
