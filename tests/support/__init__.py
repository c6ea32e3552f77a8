"""What many tests share: servers, oracles, generated files."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

PYTHONPATH = ":".join(map(str, [ROOT, TESTS, *sorted({path.parent for path in TESTS.rglob("test_*.py")})]))
"""Of processes that find the package and the functions of tests."""
