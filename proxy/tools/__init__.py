"""What commands do beside serving: warming, examining the machine, configuring nginx."""
