"""A Ray head and an S3 server on this machine."""
