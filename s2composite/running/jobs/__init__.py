"""Jobs: a job file as text, as YAML that remembers its lines, as checked options."""
