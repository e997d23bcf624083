"""The diagnosis engine, on logs of many ranks."""
