"""Data about accounts, read from outside: handles, DID documents, profiles, records, blobs."""
