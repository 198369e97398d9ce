"""Files of commands that are not reports: HTML pages and figures."""
