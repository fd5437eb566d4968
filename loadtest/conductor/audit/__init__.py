"""Is the load fit to be begun? What can be known of client and server before its first request."""
