"""How scanners make pictures of bodies whose truth is known."""
