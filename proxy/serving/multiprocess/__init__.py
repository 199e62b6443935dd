"""Several worker processes of one server: started, replaced, stopped, counted together."""
