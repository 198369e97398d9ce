"""One self-contained HTML page that shows what a trace says."""
