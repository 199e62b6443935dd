"""All requests that this service sends to the outside: guarded, bounded GETs."""
