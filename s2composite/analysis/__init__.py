"""What is done with a composite: pictures and zonal statistics."""
