"""One thread of linear algebra for every test, set before numpy or torch is imported: tests run side by side."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
