"""What many tests share: servers, oracles, generated files."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
