"""Products: the files that a composite becomes, made window by window so that any of it can be done again."""
