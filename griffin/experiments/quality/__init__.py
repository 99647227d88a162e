"""Beyond the paper: quality against active parameters, long generations, verified modes."""
