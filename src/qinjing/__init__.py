"""Qinjing turns annotated scans into a deployed imaging model and leaves evidence of every step.

The rooms are imported by name (`import qinjing.nets`), so that `import qinjing` costs nothing.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
