"""Import of what other tools record of routing: as a trace, or as a load table."""
