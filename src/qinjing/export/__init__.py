"""Models for other people's programs."""
