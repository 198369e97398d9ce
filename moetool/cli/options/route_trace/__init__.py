"""Options of `moetool route-trace` alone."""
