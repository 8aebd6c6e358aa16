"""With this folder on PYTHONPATH, every Python process knows the method that only pretends to learn."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import fake_project

fake_project.install()
