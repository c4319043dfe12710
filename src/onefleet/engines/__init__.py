"""Model runtimes behind one Protocol: llama.cpp, vLLM, simulated."""

from __future__ import annotations
