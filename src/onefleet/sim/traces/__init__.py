"""Public traces as typed values: one reader a format, and a seeded imitation of each.

A reader takes a path and nothing else; where traces lie is the caller's business. A line that does
not say what its format promises raises `BadTrace`, which names the file and the line.
"""

from __future__ import annotations
