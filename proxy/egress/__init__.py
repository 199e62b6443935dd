"""Everything this service sends to the outside: guarded, bounded GETs."""
