"""Figures, comparisons and pages about what was made."""
