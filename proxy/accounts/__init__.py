"""Accounts and what is known of them: handles, DID documents, profiles, records, blobs."""
