"""The work of commands other than serving: warming, checking the machine, configuring nginx."""
