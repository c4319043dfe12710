"""The steps of a pass, in the order in which `planner.plan` takes them; one file a concern.

Each is a function of the pass's `Scratch`, decides on it, and reports what it did.
"""
