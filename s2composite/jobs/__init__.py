"""Jobs: what is asked for."""
