"""The nouns of Onefleet: frozen values, typed ids, units and the error tree.

Standard library only. Everything else in the package imports from here; nothing here imports
anything else of the package.
"""

from __future__ import annotations
