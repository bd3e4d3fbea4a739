"""How much a request costs on a device."""
