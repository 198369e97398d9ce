"""Results as the plain, compact values that the page's scripts read: one module a panel."""
