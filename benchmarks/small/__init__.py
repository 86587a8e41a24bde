"""A small trained M3, in ``checkpoint/``, and the recipe that made it.

python -m benchmarks.small.train --data SHARED_DATA
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
